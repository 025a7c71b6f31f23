"""Which layers of the vision encoder a search chooses among, so that their attention is kept.

A trial whose attention is not kept runs the vision encoder again on every sample, and what it then
keeps takes the place of what the next one needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vflowopt_search.reference.shelf import GB


@dataclass(frozen=True)
class OfferedLayers:
    """Layers whose attention over all samples is kept together.

    Attributes:
        layers: encoder layers, rising.
        note: one sentence if they are not all or cannot be kept; None where all is well.
    """

    layers: tuple[int, ...]
    note: str | None = None


def offered_layers(layers: Sequence[int], layer_bytes: float, room: float) -> OfferedLayers:
    """As many layers as there is room for, evenly spaced and the last among them.

    All of them where there is no room for one: the encoder then runs in every trial, whatever the
    layer.

    Args:
        layers: those whose attention can be read, rising.
        layer_bytes: what one layer takes, over all samples.
        room: bytes that can be kept.
    """
    fitting = int(min(len(layers), room // max(1.0, layer_bytes)))
    if fitting == len(layers):
        return OfferedLayers(tuple(layers))
    if fitting < 1:
        return OfferedLayers(
            tuple(layers),
            f"attention of one vision encoder layer takes {_gb(layer_bytes)} GB on these samples, "
            f"but {_gb(room)} can be kept, so that the encoder runs again in every trial; allow "
            "more with --cache-gb, or search on fewer samples",
        )
    return OfferedLayers(
        evenly_spaced(layers, fitting),
        f"vision_depth chooses among {fitting} of {len(layers)} encoder layers: attention of all "
        f"takes {_gb(layer_bytes * len(layers))} GB on these samples, but {_gb(room)} can be kept; "
        "allow more with --cache-gb",
    )


def evenly_spaced(layers: Sequence[int], count: int) -> tuple[int, ...]:
    """The last of each of `count` groups of neighbours that are as equal as can be."""
    return tuple(layers[(group + 1) * len(layers) // count - 1] for group in range(count))


def _gb(size: float) -> str:
    return f"{size / GB:.1f}" if size >= GB / 20 else f"{size / GB:.1g}"
