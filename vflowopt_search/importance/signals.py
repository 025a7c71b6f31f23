"""What a score may see of a batch of images, and how a map over patches reaches the tokens.

Shape suffixes: T = tiles of all images together, P = patches of a tile, H = heads,
Q = a tile's sequence in the vision encoder (prefix tokens such as CLS first, then P),
D = head width, N = visual tokens of one image in prompt order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from vflowopt_search.errors import UnsupportedError
from vflowopt_search.ops.attention import attention_received
from vflowopt_search.ops.precision import at_least_fp32

Signal = TypeVar("Signal")


class TileAttention(Protocol):
    """Attention of one encoder layer, mean over heads: prefix tokens ask but are not answered.

    Half precision is answered in fp32, anything else in its own precision.
    """

    def received(self) -> Tensor:
        """Mean over all queries, prefix included, shape (T, P) (algorithms.md 1.1, step 2)."""
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

    def received(self) -> Tensor:
        """Mean over all queries, shape (T, P)."""
        received_TQ = attention_received(self.query_THQD, self.key_THQD, self.scale)
        return received_TQ[:, self.prefix :]

    def relevance(self, context_TP: Tensor) -> Tensor:
        """Mean over the queries that `context_TP` selects, shape (T, P)."""
        weight_TQ = pad(context_TP.float(), (self.prefix, 0))
        received_TQ = attention_received(self.query_THQD, self.key_THQD, self.scale, weight_TQ)
        return received_TQ[:, self.prefix :]


@dataclass(frozen=True, eq=False)
class MappedAttention:
    """Attention kept as a map, queries before keys: what a search stores once for all trials."""

    map_TQQ: Tensor
    prefix: int = 0

    def received(self) -> Tensor:
        """Mean over all queries, shape (T, P)."""
        return at_least_fp32(self.map_TQQ)[:, :, self.prefix :].mean(1)

    def relevance(self, context_TP: Tensor) -> Tensor:
        """Mean over the queries that `context_TP` selects, shape (T, P)."""
        patches_TPP = at_least_fp32(self.map_TQQ)[:, self.prefix :, self.prefix :]
        weight_TP = context_TP.to(patches_TPP.dtype) / context_TP.sum(-1, keepdim=True)
        return (weight_TP[:, None] @ patches_TPP).squeeze(1)


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
    """Tiles and tokens of one image.

    `pack` takes a map over its patches (num_tiles, P) to a value per token (N,), through the same
    geometry as the features; what it gives separators means nothing.
    """

    num_tiles: int
    grid: TokenGrid
    pack: Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class VisualSignals:
    """Everything a score may look at, for a batch; None is a signal that is not there.

    `entropy_TP` is in bits; `text_attention` has one vector (N,) per image.
    """

    images: tuple[ImageGeometry, ...]
    attention: TileAttention | None = None
    entropy_TP: Tensor | None = None
    text_attention: tuple[Tensor, ...] | None = None

    def to_tokens(self, map_TP: Tensor) -> tuple[Tensor, ...]:
        """A map over all patches as one vector (N,) per image."""
        parts = torch.split(map_TP, [image.num_tiles for image in self.images])
        return tuple(image.pack(part) for image, part in zip(self.images, parts, strict=True))

    def only(self, needs: frozenset[str]) -> VisualSignals:
        """The same batch with the signals in `needs` alone; UnsupportedError if one is missing."""
        return replace(
            self,
            attention=present(self.attention, "attention") if "attention" in needs else None,
            entropy_TP=present(self.entropy_TP, "entropy") if "entropy" in needs else None,
            text_attention=(
                present(self.text_attention, "text_attention")
                if "text_attention" in needs
                else None
            ),
        )


def present(signal: Signal | None, name: str) -> Signal:
    """`signal` itself; UnsupportedError naming it if it is missing."""
    if signal is None:
        raise UnsupportedError(
            f"the signal {name!r} is not available at this stage of this model; "
            f"choose a score that does not need it ('uniform' needs none)"
        )
    return signal
