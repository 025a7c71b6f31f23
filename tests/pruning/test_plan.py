"""The laws of choosing and recycling: exact counts, order, nothing lost or counted twice."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vflowopt_search.importance.signals import TokenGrid
from vflowopt_search.pruning.plan import (
    best_of_alive,
    grid_cells,
    join_grids,
    ranking,
    recycle,
)


def grid_of(height: int, width: int, *, separators: bool) -> TokenGrid:
    """Rows of a view, each ended by a separator if asked."""
    rows = [(r, c) for r in range(height) for c in [*range(width), *([-1] if separators else [])]]
    row_N, col_N = (torch.tensor([pair[i] for pair in rows]) for i in (0, 1))
    separator_N = col_N < 0
    return TokenGrid(
        view_N=torch.zeros_like(row_N),
        row_N=torch.where(separator_N, -1, row_N),
        col_N=col_N,
        separator_N=separator_N,
    )


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, TokenGrid, float, int, str]:
    """Scores (with ties) on a grid, a cell, a count to reach and what happens to separators."""
    grid = grid_of(draw(st.integers(1, 9)), draw(st.integers(1, 9)), separators=draw(st.booleans()))
    score_N = torch.tensor(
        draw(st.lists(st.integers(-3, 20), min_size=len(grid), max_size=len(grid)))
    ).float()
    count = draw(st.integers(1, len(grid)))
    side = draw(st.floats(1.0, 6.0))
    return score_N, grid, side, count, draw(st.sampled_from(["keep", "drop"]))


@given(cases())
def test_recycling_meets_every_count_exactly(
    case: tuple[Tensor, TokenGrid, float, int, str],
) -> None:
    score_N, grid, side, count, separators = case
    order_N = ranking(score_N, grid.separator_N, separators)
    kept, merge = recycle(score_N, order_N, grid_cells(grid, side), count)
    assert len(kept) == count
    assert kept.tolist() == sorted(set(kept.tolist()))
    if merge is not None:
        assert set(merge.anchor_G.tolist()) <= set(kept.tolist())


@given(cases())
def test_a_merged_token_has_one_cell_of_members_and_sits_on_its_best(
    case: tuple[Tensor, TokenGrid, float, int, str],
) -> None:
    score_N, grid, side, count, separators = case
    order_N = ranking(score_N, grid.separator_N, separators)
    cell_N = grid_cells(grid, side)
    kept, merge = recycle(score_N, order_N, cell_N, count)
    if merge is None:
        return
    rank = {token: place for place, token in enumerate(order_N.tolist())}
    for group, anchor in enumerate(merge.anchor_G.tolist()):
        members = (merge.group_N == group).nonzero()[:, 0].tolist()
        assert len(members) > 1
        assert len({int(cell_N[m]) for m in members}) == 1
        assert anchor == min(members, key=rank.__getitem__)
        assert not grid.separator_N[members].any()
        assert set(members) & set(kept.tolist()) == {anchor}


@given(cases())
def test_what_is_kept_whole_ranks_above_what_is_merged(
    case: tuple[Tensor, TokenGrid, float, int, str],
) -> None:
    score_N, grid, side, count, separators = case
    order_N = ranking(score_N, grid.separator_N, separators)
    kept, merge = recycle(score_N, order_N, grid_cells(grid, side), count)
    if merge is None:
        return
    rank = {token: place for place, token in enumerate(order_N.tolist())}
    merged = (merge.group_N >= 0).nonzero()[:, 0].tolist()
    gone = set(range(len(grid))) - set(kept.tolist()) - set(merged)
    singles = set(kept.tolist()) - set(merge.anchor_G.tolist())
    above = [token for token in singles if rank[token] < min(rank[m] for m in merged)]
    cells = {int(c) for c in grid_cells(grid, side)[list(singles - set(above))]}
    assert len(cells) == len(singles) - len(above)  # singles among the merged: alone in their cell
    assert all(rank[token] > min(rank[t] for t in kept.tolist()) for token in gone)


def test_recycling_by_hand() -> None:
    # a 2x2 view in one cell of side 2, scores 4 3 2 1: two left = the best, and 2+1+3 merged on 3
    grid = grid_of(2, 2, separators=False)
    score_N = torch.tensor([4.0, 3.0, 2.0, 1.0])
    order_N = ranking(score_N, grid.separator_N, "drop")
    kept, merge = recycle(score_N, order_N, grid_cells(grid, 2.0), 2)
    assert merge is not None
    assert kept.tolist() == [0, 1]
    assert merge.anchor_G.tolist() == [1]
    assert merge.group_N.tolist() == [-1, 0, 0, 0]


def test_separators_rank_first_or_last() -> None:
    score_N = torch.tensor([0.5, 9.0, 0.7])
    separator_N = torch.tensor([True, False, False])
    assert ranking(score_N, separator_N, "keep").tolist() == [0, 1, 2]
    assert ranking(score_N, separator_N, "drop").tolist() == [1, 2, 0]


def test_ties_go_to_the_earlier_token() -> None:
    order_N = ranking(torch.ones(5), torch.zeros(5, dtype=torch.bool), "drop")
    assert order_N.tolist() == [0, 1, 2, 3, 4]


@given(st.permutations(range(12)), st.sets(st.integers(0, 11), min_size=1), st.data())
def test_the_best_of_the_living_in_order(
    order: list[int], alive: set[int], data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, len(alive)))
    kept = best_of_alive(torch.tensor(order), torch.tensor(sorted(alive)), count).tolist()
    expected = sorted([token for token in order if token in alive][:count])
    assert kept == expected


def test_cells_of_a_real_valued_side() -> None:
    grid = grid_of(1, 5, separators=True)
    cell_N = grid_cells(grid, 1.5).tolist()  # columns 0 1 | 2 | 3 4, then the separator
    assert cell_N[0] == cell_N[1] != cell_N[2] != cell_N[3] == cell_N[4]
    assert cell_N[5] == -1


@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=4),
    st.floats(1.0, 6.0),
)
def test_tokens_share_a_cell_where_view_row_and_column_do(
    sizes: list[tuple[int, int]], side: float
) -> None:
    grid = join_grids([grid_of(height, width, separators=False) for height, width in sizes])
    row_N, col_N = (grid.row_N / side).floor(), (grid.col_N / side).floor()
    cells = list(zip(grid.view_N.tolist(), row_N.tolist(), col_N.tolist(), strict=True))
    number = dict(zip(cells, grid_cells(grid, side).tolist(), strict=True))
    assert [number[cell] for cell in cells] == grid_cells(grid, side).tolist()
    assert len(set(number.values())) == len(number)


def test_views_of_two_images_stay_apart() -> None:
    grid = join_grids([grid_of(2, 2, separators=False), grid_of(2, 2, separators=False)])
    cell_N = grid_cells(grid, 6.0)
    assert len(set(cell_N[:4].tolist())) == 1
    assert set(cell_N[:4].tolist()).isdisjoint(cell_N[4:].tolist())
