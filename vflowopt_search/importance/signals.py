"""What a score may see of a batch of images, and how a map over patches reaches the tokens.

A *tile* is what the vision encoder attends within: a tile, a whole image, or a frame of a video.
Images whose tiles have equally many patches and that follow each other are a *run*; signals come
run by run, so that one tensor holds a whole run.

Shape suffixes: T = tiles of a run, P = patches of a tile, H = heads, Q = a tile's sequence in the
vision encoder (P patches, between prefix and suffix tokens such as CLS), D = head width,
N = visual tokens of one image in prompt order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from vflowopt_search.errors import UnsupportedError
from vflowopt_search.ops.dispatch import attention_received

Signal = TypeVar("Signal")


class TileAttention(Protocol):
    """Attention of one encoder layer over a run, mean over heads.

    Prefix and suffix tokens ask but are not answered.

    Half precision is answered in fp32, anything else in its own precision.
    """

    def received(self) -> Tensor:
        """Mean over all queries, CLS included, shape (T, P) (algorithms.md 1.1, step 2)."""
        ...

    def relevance(self, context_TP: Tensor) -> Tensor:
        """Mean over the queries that the boolean `context_TP` selects, shape (T, P) (step 4).

        Every row must select at least one.
        """
        ...


@dataclass(frozen=True, eq=False)
class ProjectedAttention:
    """Attention kept as queries and keys: the (Q, Q) map is never whole in memory."""

    query_THQD: Tensor
    key_THQD: Tensor
    scale: float
    prefix: int = 0
    suffix: int = 0

    def received(self) -> Tensor:
        """Mean over all queries, shape (T, P)."""
        received_TQ = attention_received(self.query_THQD, self.key_THQD, self.scale)
        return received_TQ[:, self.prefix : received_TQ.shape[1] - self.suffix]

    def relevance(self, context_TP: Tensor) -> Tensor:
        """Mean over the queries that `context_TP` selects, shape (T, P)."""
        weight_TQ = pad(context_TP.float(), (self.prefix, self.suffix))
        received_TQ = attention_received(self.query_THQD, self.key_THQD, self.scale, weight_TQ)
        return received_TQ[:, self.prefix : received_TQ.shape[1] - self.suffix]


@dataclass(frozen=True, eq=False)
class TokenGrid:
    """Where each visual token of one image lies: view (0 = base), row and column in that view.

    Separators such as row ends lie nowhere: row = col = -1 and `separator_N` is true.
    """

    view_N: Tensor
    row_N: Tensor
    col_N: Tensor
    separator_N: Tensor

    def __len__(self) -> int:
        return len(self.view_N)


@dataclass(frozen=True, eq=False)
class ImageGeometry:
    """Tiles and tokens of one image, or of one video.

    `pack` takes a map over its patches (num_tiles, tile_patches) to a value per token (N,), through
    the same geometry as the features; what it gives separators means nothing.
    """

    num_tiles: int
    tile_patches: int
    grid: TokenGrid
    pack: Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class VisualSignals:
    """Everything a score may look at, for a batch; None is a signal that is not there.

    `attention` and `entropy` (bits, (T, P)) have one entry per run of the images;
    `text_attention` has one vector (N,) per image.
    """

    images: tuple[ImageGeometry, ...]
    attention: tuple[TileAttention, ...] | None = None
    entropy: tuple[Tensor, ...] | None = None
    text_attention: tuple[Tensor, ...] | None = None

    def to_tokens(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Maps over all patches (T, P), one per run, as one vector (N,) per image."""
        parts = by_image(self.images, maps)
        return tuple(image.pack(part) for image, part in zip(self.images, parts, strict=True))

    def only(self, needs: frozenset[str]) -> VisualSignals:
        """The same batch with the signals in `needs` alone; UnsupportedError if one is missing."""
        return replace(
            self,
            attention=present(self.attention, "attention") if "attention" in needs else None,
            entropy=present(self.entropy, "entropy") if "entropy" in needs else None,
            text_attention=(
                present(self.text_attention, "text_attention")
                if "text_attention" in needs
                else None
            ),
        )


def runs_of(images: Sequence[ImageGeometry]) -> list[list[ImageGeometry]]:
    """The images by runs: neighbours whose tiles have equally many patches."""
    return [list(run) for _, run in groupby(images, key=lambda image: image.tile_patches)]


def by_image(images: Sequence[ImageGeometry], runs: Sequence[Tensor]) -> list[Tensor]:
    """Tensors over the tiles of each run (T, ...), cut into one per image."""
    return [
        part
        for run, whole in zip(runs_of(images), runs, strict=True)
        for part in torch.split(whole, [image.num_tiles for image in run])
    ]


def by_run(images: Sequence[ImageGeometry], parts: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The reverse of `by_image`: one tensor per image (tiles, ...) joined run by run."""
    left = iter(parts)
    return tuple(torch.cat([next(left) for _ in run]) for run in runs_of(images))


def present(signal: Signal | None, name: str) -> Signal:
    """`signal` itself; UnsupportedError naming it if it is missing."""
    if signal is None:
        raise UnsupportedError(
            f"the signal {name!r} is not available at this stage of this model; "
            f"choose a score that does not need it ('uniform' needs none)"
        )
    return signal
