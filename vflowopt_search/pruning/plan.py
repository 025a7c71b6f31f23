"""Scores and stages → kept indices and merges; pure arithmetic, no model.

Shape suffixes: N = visual tokens of one sample, K = kept tokens, G = merged groups (grid cells).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vflowopt_search.importance.signals import TokenGrid


@dataclass(frozen=True)
class Merge:
    """Which tokens become one *recycled* token, and where it is written.

    Attributes:
        group_N: group of each token, -1 for tokens that are not merged, int64.
        weight_N: importance of each token, the weight of its features in the mean.
        anchor_G: index of each group's most important member: the merged token takes its place.
    """

    group_N: Tensor
    weight_N: Tensor
    anchor_G: Tensor


def join_grids(grids: Sequence[TokenGrid]) -> TokenGrid:
    """The grid of all visual tokens of one sample; the views of every image stay apart."""
    views, offset = [], 0
    for grid in grids:
        views.append(grid.view_N + offset)
        offset += int(grid.view_N.max()) + 1
    return TokenGrid(
        view_N=torch.cat(views),
        row_N=torch.cat([grid.row_N for grid in grids]),
        col_N=torch.cat([grid.col_N for grid in grids]),
        separator_N=torch.cat([grid.separator_N for grid in grids]),
    )


def ranking(score_N: Tensor, separator_N: Tensor, separators: str) -> Tensor:
    """Indices of the tokens, best first; ties go to the earlier token, shape (N,).

    Separators (row ends) stand before all others with `separators="keep"` (VFlowOpt gives them
    importance 1) and behind all others with `"drop"`.
    """
    order_N = torch.argsort(score_N, descending=True, stable=True)
    tier_N = separator_N.to(torch.int8) * (1 if separators == "keep" else -1)
    return order_N[torch.argsort(tier_N[order_N], descending=True, stable=True)]


def best_of_alive(order_N: Tensor, alive_K: Tensor, count: int) -> Tensor:
    """The `count` best-ranked of the tokens `alive_K`, in sequence order, shape (count,)."""
    alive_N = torch.zeros_like(order_N, dtype=torch.bool)
    alive_N[alive_K] = True
    return order_N[alive_N[order_N]][:count].sort().values


def grid_cells(grid: TokenGrid, cell: float) -> Tensor:
    """Number of the grid cell (view, floor(row / a), floor(col / a)) of each token, shape (N,).

    Separators lie on no grid and get -1 (VFlowOpt section 1.2: cell side `a` is real-valued).
    """
    row_N = (grid.row_N / cell).floor().long()
    col_N = (grid.col_N / cell).floor().long()
    width = int(col_N.max()) + 1 if len(grid) else 1
    height = int(row_N.max()) + 1 if len(grid) else 1
    key_N = (grid.view_N * max(height, 1) + row_N) * max(width, 1) + col_N
    number_N = torch.unique(key_N, return_inverse=True)[1]
    return torch.where(grid.separator_N, -1, number_N)


def recycle(
    score_N: Tensor, order_N: Tensor, cell_N: Tensor, count: int
) -> tuple[Tensor, Merge | None]:
    """Keep the best tokens, merge the others by cell (algorithms.md 1.2): `count` tokens are left.

    Going from the least important token upward, a token either joins a cell that is open already
    (one token fewer) or opens a cell (no change), so the number of tokens falls in steps of one
    and every count down to the number of cells is met exactly. Below that, the cells whose most
    important member ranks lowest go altogether.

    Args:
        score_N: importance, the weight of a token in its cell's mean.
        order_N: tokens, best first (see `ranking`).
        cell_N: cell of each token; -1 (separators) is never merged, only dropped.
        count: tokens to be left, 1..N.

    Returns:
        Indices left, in sequence order, shape (count,), and the merge (None if nothing merges).
    """
    num_tokens = len(order_N)
    if count >= num_tokens:
        return torch.arange(num_tokens, device=order_N.device), None
    worst_first_N = order_N.flip(0)
    cell_along_N = cell_N[worst_first_N]
    fewer_N = (~_opens_a_cell(cell_along_N)).cumsum(0)
    num_removed = num_tokens - count
    num_reached = int((fewer_N < num_removed).sum()) + 1
    reached_N = torch.zeros(num_tokens, dtype=torch.bool, device=order_N.device)
    reached_N[worst_first_N[:num_reached]] = True
    return _close_cells(score_N, order_N, cell_N, reached_N, count)


def _opens_a_cell(cell_along_N: Tensor) -> Tensor:
    """Whether each token, in the order given, is the first of its cell, shape (N,) bool."""
    place_N = torch.arange(len(cell_along_N), device=cell_along_N.device)
    on_grid_N = cell_along_N >= 0
    first_G = torch.full_like(place_N, len(place_N))
    first_G.scatter_reduce_(0, cell_along_N[on_grid_N], place_N[on_grid_N], "amin")
    opens_N = torch.zeros_like(on_grid_N)
    opens_N[on_grid_N] = first_G[cell_along_N[on_grid_N]] == place_N[on_grid_N]
    return opens_N


def _close_cells(
    score_N: Tensor, order_N: Tensor, cell_N: Tensor, reached_N: Tensor, count: int
) -> tuple[Tensor, Merge | None]:
    """Turn the tokens reached from below into one token per cell; cells too many are dropped."""
    in_cell_N = reached_N & (cell_N >= 0)
    rank_N = torch.empty_like(order_N)
    rank_N[order_N] = torch.arange(len(order_N), device=order_N.device)
    best_G = torch.full_like(order_N, len(order_N))
    best_G.scatter_reduce_(0, cell_N[in_cell_N], rank_N[in_cell_N], "amin")
    anchors = order_N[best_G[best_G < len(order_N)].sort().values]
    anchors = anchors[: count - int((~reached_N).sum())]
    kept = torch.cat([anchors, (~reached_N).nonzero().squeeze(1)]).sort().values

    group_of_cell = torch.full_like(order_N, -1)
    size_of_cell = torch.zeros_like(order_N).index_add_(
        0, cell_N[in_cell_N], torch.ones_like(cell_N[in_cell_N])
    )
    shared = anchors[size_of_cell[cell_N[anchors]] > 1]
    if len(shared) == 0:
        return kept, None
    group_of_cell[cell_N[shared]] = torch.arange(len(shared), device=order_N.device)
    group_N = torch.full_like(order_N, -1)
    group_N[in_cell_N] = group_of_cell[cell_N[in_cell_N]]
    return kept, Merge(group_N=group_N, weight_N=score_N, anchor_G=shared)
