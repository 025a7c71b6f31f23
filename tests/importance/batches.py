"""Small batches of images whose signals are drawn from a seed.

Shape suffixes: T = tiles, P = patches of a tile, H = heads, Q = prefix and patches, D = head width,
N = visual tokens of one image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vflowopt_search.importance.context import ContextAttention, context_map
from vflowopt_search.importance.signals import (
    ImageGeometry,
    ProjectedAttention,
    TokenGrid,
    VisualSignals,
)

SIDE = 3
PREFIX = 1
SCALE = 0.5


def make_grid(*shapes: tuple[int, int], separators: bool = False) -> TokenGrid:
    """Views of the given heights and widths, in raster order, with or without row ends."""
    places = [
        (view, row, col)
        for view, (height, width) in enumerate(shapes)
        for row in range(height)
        for col in [*range(width), *([-1] if separators else [])]
    ]
    view_N, row_N, col_N = torch.tensor(places).T
    return TokenGrid(view_N, torch.where(col_N < 0, -1, row_N), col_N, col_N < 0)


def make_geometry(num_tiles: int) -> ImageGeometry:
    """Every tile a view of its own, of 3 x 3 patches, each row of which ends in a separator."""

    def pack(map_TP: Tensor) -> Tensor:
        rows = map_TP.view(num_tiles, SIDE, SIDE)
        return torch.cat([rows, rows.new_full((num_tiles, SIDE, 1), 7.0)], dim=2).flatten()

    grid = make_grid(*[(SIDE, SIDE)] * num_tiles, separators=True)
    return ImageGeometry(num_tiles, SIDE**2, grid, pack)


@dataclass(frozen=True)
class Image:
    """One image's share of a batch: the seed is its content."""

    seed: int
    num_tiles: int

    def draw(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys, entropy and text attention."""
        generator = torch.Generator().manual_seed(self.seed)
        projection = (self.num_tiles, 2, PREFIX + SIDE**2, 4)
        return (
            torch.randn(projection, generator=generator) * 2,
            torch.randn(projection, generator=generator) * 2,
            torch.rand(self.num_tiles, SIDE**2, generator=generator) * 7,
            torch.rand(len(make_geometry(self.num_tiles).grid), generator=generator),
        )


def make_signals(*images: Image) -> VisualSignals:
    """All signals of the images, as one batch."""
    query, key, entropy, text = zip(*[image.draw() for image in images], strict=True)
    return VisualSignals(
        images=tuple(make_geometry(image.num_tiles) for image in images),
        attention=(ProjectedAttention(torch.cat(query), torch.cat(key), SCALE, PREFIX),),
        entropy=(torch.cat(entropy),),
        text_attention=text,
    )


def eager_map(query_THQD: Tensor, key_THQD: Tensor, scale: float) -> Tensor:
    """The whole attention map, mean over heads, (T, Q, Q)."""
    return (
        (query_THQD.double() @ key_THQD.double().mT * scale)
        .softmax(-1)
        .mean(1)
        .to(query_THQD.dtype)
    )


def as_stored(attention: ProjectedAttention) -> ContextAttention:
    """The same attention as a search keeps it, one part per tile."""
    map_TQQ = eager_map(attention.query_THQD, attention.key_THQD, attention.scale)
    parts = [context_map(one_TQQ, attention.prefix, 0) for one_TQQ in torch.split(map_TQQ, 1)]
    return ContextAttention(parts, map_TQQ.device)
