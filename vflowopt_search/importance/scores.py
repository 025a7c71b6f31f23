"""The scores: signals in, one importance per visual token and image out; higher is kept.

A score depends on each image's content, never on its place in the batch.
Shape suffixes: T = tiles, P = patches of a tile, N = visual tokens of one image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol
from zlib import crc32

import torch
from torch import Tensor

from vflowopt_search.importance.signals import (
    TileAttention,
    TokenGrid,
    VisualSignals,
    present,
)


class ImportanceScore(Protocol):
    """Ranks visual tokens; called once per stage that prunes with it."""

    @property
    def needs(self) -> frozenset[str]:
        """The signals it reads: any of "attention", "entropy", "text_attention"."""
        ...

    def __call__(self, signals: VisualSignals) -> tuple[Tensor, ...]:
        """Importance per image, fp32 at least, (N,); values at separators mean nothing.

        Raises UnsupportedError if a signal in `needs` is missing.
        """
        ...


@dataclass(frozen=True)
class ReceivedAttention:
    """Attention from the most attended patches, plus weighted entropy (algorithms.md 1.1)."""

    context_threshold: float = 0.0
    entropy_weight: float = 0.0

    @property
    def needs(self) -> frozenset[str]:
        """Attention, and entropy where its weight is not 0."""
        return frozenset({"attention", "entropy"} if self.entropy_weight else {"attention"})

    def __call__(self, signals: VisualSignals) -> tuple[Tensor, ...]:
        """s = c + entropy_weight * softmax(e) in each tile, then to tokens."""
        runs = [self.relevance(run) for run in present(signals.attention, "attention")]
        if self.entropy_weight:
            entropy = present(signals.entropy, "entropy")
            runs = [
                score_TP + self.entropy_weight * entropy_TP.float().softmax(-1)
                for score_TP, entropy_TP in zip(runs, entropy, strict=True)
            ]
        return signals.to_tokens(runs)

    def relevance(self, attention: TileAttention) -> Tensor:
        """c: mean attention from the context tokens of a run, shape (T, P)."""
        context_TP = context_tokens(attention.received(), self.context_threshold)
        return attention.relevance(context_TP)


def context_tokens(received_TP: Tensor, threshold: float) -> Tensor:
    """The patches that attract more than `threshold` times the mean, boolean (T, P).

    Where none does, the most attended patch (all of them on a tie), the limit of a rising
    threshold; the published code divides by zero there (algorithms.md 1.1, steps 3 and 4).
    """
    selected_TP = received_TP > threshold * received_TP.mean(-1, keepdim=True)
    strongest_TP = received_TP == received_TP.amax(-1, keepdim=True)
    return torch.where(selected_TP.any(-1, keepdim=True), selected_TP, strongest_TP)


@dataclass(frozen=True)
class TextAttention:
    """Attention of the last prompt token at a decoder layer (FastV, PyramidDrop)."""

    needs: ClassVar[frozenset[str]] = frozenset({"text_attention"})

    def __call__(self, signals: VisualSignals) -> tuple[Tensor, ...]:
        """The signal as it is."""
        return present(signals.text_attention, "text_attention")


@dataclass(frozen=True)
class RandomScore:
    """A random order of the tokens, the same for every image of N tokens; values in (0, 1).

    It could differ between images by their place in the batch, which must decide nothing (beams of
    one prompt would keep different tokens), or by their pixels, which it does not see.
    """

    seed: int = 0
    needs: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, signals: VisualSignals) -> tuple[Tensor, ...]:
        """N evenly spaced values, in the order that belongs to (seed, N)."""
        return tuple(self._order(image.grid) for image in signals.images)

    def _order(self, grid: TokenGrid) -> Tensor:
        # torch's CPU generator reads 32 bits of its seed, so both numbers are mixed into 32.
        generator = torch.Generator().manual_seed(crc32(f"{self.seed}/{len(grid)}".encode()))
        rank_N = torch.randperm(len(grid), generator=generator)
        return _spaced(rank_N).to(grid.view_N.device)


@dataclass(frozen=True)
class UniformGrid:
    """A regular sub-grid of every view, whatever the number of tokens kept; values in (0, 1)."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, signals: VisualSignals) -> tuple[Tensor, ...]:
        """N evenly spaced values; views get tokens in proportion, separators come last."""
        return tuple(_spread(image.grid) for image in signals.images)


def _spread(grid: TokenGrid) -> Tensor:
    """Score that takes the tokens of a view in dither order, and views in proportion."""
    due_N = torch.full((len(grid),), torch.inf, dtype=torch.float64, device=grid.view_N.device)
    for view in torch.unique(grid.view_N[~grid.separator_N]).tolist():
        inside = ((grid.view_N == view) & ~grid.separator_N).nonzero().squeeze(1)
        rank = _rank(_dither(grid.row_N[inside], grid.col_N[inside])).double()
        # The golden ratio starts equal views (video frames) at times spread over the round.
        due_N[inside] = (rank + (0.5 + view * 0.6180339887498949) % 1) / len(inside)
    return _spaced(len(grid) - 1 - _rank(due_N))


def _dither(row_N: Tensor, col_N: Tensor) -> Tensor:
    """Bayer's ordered-dither key: any first few positions are a near-regular sub-grid."""
    row_N, col_N = _centred(row_N), _centred(col_N)
    bits = int(max(row_N.max(), col_N.max())).bit_length()
    key_N = torch.zeros_like(row_N)
    for bit in range(bits):  # the lowest bit of a coordinate decides first, hence leads the key
        row_bit, col_bit = row_N >> bit & 1, col_N >> bit & 1
        key_N = key_N * 4 + 2 * (row_bit ^ col_bit) + row_bit
    return key_N


def _centred(coordinate_N: Tensor) -> Tensor:
    """Coordinates turned within a power of two, so that sub-grids lie in the middle of the view."""
    length = int(coordinate_N.max()) + 1
    size = 1 << (length - 1).bit_length()

    def lopsided(shift: int) -> float:
        """Free space before a sub-grid against that behind it, over the spacings 2, 4, ..."""
        spacings = [size >> halvings for halvings in range(1, size.bit_length())]
        return sum(abs(shift % s - (length - 1 - shift) % s) / s for s in spacings)

    return (coordinate_N - min(range(size), key=lopsided)) % size


def _rank(key_N: Tensor) -> Tensor:
    """Place of each element in ascending order; equal ones keep their order."""
    return key_N.argsort(stable=True).argsort()


def _spaced(rank_N: Tensor) -> Tensor:
    """Ranks 0..N - 1 as values in (0, 1), so that images of any size can be ranked together."""
    return ((rank_N + 0.5) / len(rank_N)).float()
