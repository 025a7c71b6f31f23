from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from tests.importance.batches import make_grid
from vflowopt_search.importance.scores import UniformGrid
from vflowopt_search.importance.signals import ImageGeometry, TokenGrid, VisualSignals

SHAPES = [(14, 14), (7, 7), (27, 27), (24, 36), (16, 16), (5, 40), (9, 12)]


def spread(grid: TokenGrid) -> Tensor:
    geometry = ImageGeometry(1, len(grid), grid, lambda map_TP: map_TP.flatten())
    (value_N,) = UniformGrid()(VisualSignals(images=(geometry,)))
    return value_N


def top(value_N: Tensor, count: int) -> Tensor:
    kept_N = torch.zeros(len(value_N), dtype=torch.bool)
    kept_N[value_N.topk(count).indices] = True
    return kept_N


def reach(kept: Tensor) -> float:
    """Largest distance from any place of a (height, width) view to the nearest kept one."""
    places = torch.ones_like(kept).nonzero().double()
    return torch.cdist(places, kept.nonzero().double()).min(1).values.max().item()


@pytest.mark.parametrize("count", range(9, 196))
def test_every_window_of_five_by_five_holds_a_kept_token(count: int) -> None:
    kept = top(spread(make_grid((14, 14))), count).view(1, 1, 14, 14).double()
    assert max_pool2d(kept, 5, stride=1).min() == 1


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_any_count_covers_much_better_than_chance(height: int, width: int) -> None:
    total = height * width
    value_N = spread(make_grid((height, width)))
    counts = range(8, total // 2, max(1, total // 40))
    generator = torch.Generator().manual_seed(0)
    ratios = []
    for count in counts:
        draws = [torch.rand(total, generator=generator) for _ in range(8)]
        chance = sum(reach(top(draw, count).view(height, width)) for draw in draws) / len(draws)
        ratios.append(reach(top(value_N, count).view(height, width)) / chance)
    # A half-finished level covers least: then about as well as chance.
    assert max(ratios) < 1.05
    assert sum(ratios) / len(ratios) < 0.75


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_a_completed_level_is_a_regular_grid(height: int, width: int) -> None:
    rank = spread(make_grid((height, width))).argsort(descending=True).argsort()
    step = 4
    lattice = rank.view(height, width) < -(-height // step) * -(-width // step) // 2
    rows, cols = lattice.nonzero().T
    assert len({(row % 2).item() for row in rows}) == 1
    assert len({(col % 2).item() for col in cols}) == 1


@pytest.mark.parametrize("count", [2, 32])
def test_a_half_completed_level_is_a_chequerboard(count: int) -> None:
    row, col = top(spread(make_grid((16, 16))), count).view(16, 16).nonzero().T
    step = {2: 8, 32: 2}[count]
    corner = (row - row.min()) // step + (col - col.min()) // step
    assert (corner % 2 == 0).all()
    assert len(torch.unique(row)) == len(torch.unique(col)) == 16 // step


@pytest.mark.parametrize("shapes", [[(7, 7), (14, 21)], [(4, 4), (4, 4)], [(27, 27), (1, 3)]])
def test_views_keep_tokens_in_proportion(shapes: list[tuple[int, int]]) -> None:
    grid = make_grid(*shapes)
    value_N = spread(grid)
    for count in range(len(grid) + 1):
        kept_N = top(value_N, count)
        for view, (height, width) in enumerate(shapes):
            share = count * height * width / len(grid)
            assert abs((kept_N & (grid.view_N == view)).sum().item() - share) <= 1


def test_fewer_tokens_than_frames_are_spread_over_time() -> None:
    grid = make_grid(*[(3, 3)] * 32)
    frames = grid.view_N[top(spread(grid), 8)].tolist()
    gaps = [late - early for early, late in pairwise([-1, *frames, 32])]
    assert len(set(frames)) == 8
    assert max(gaps) <= 6


def test_values_are_distinct_and_comparable_between_images() -> None:
    for grid in (make_grid((1, 1)), make_grid((7, 7)), make_grid((20, 30))):
        value_N = spread(grid)
        assert len(torch.unique(value_N)) == len(grid)
        assert value_N.mean().item() == pytest.approx(0.5)
        assert 0 < value_N.min() <= value_N.max() < 1


def test_separators_come_last_and_change_nothing_else() -> None:
    grid = make_grid((7, 7), (5, 9), separators=True)
    value_N = spread(grid)
    assert value_N[~grid.separator_N].min() > value_N[grid.separator_N].max()
    plain_N = spread(make_grid((7, 7), (5, 9)))
    order = value_N[~grid.separator_N].argsort()
    assert torch.equal(order, plain_N.argsort())


def test_where_a_token_stands_in_the_prompt_does_not_matter() -> None:
    grid = make_grid((7, 7), (5, 9), separators=True)
    inside = (~grid.separator_N).nonzero().squeeze(1)
    order = torch.randperm(len(inside), generator=torch.Generator().manual_seed(0))
    moved = inside[order]
    shuffled = TokenGrid(
        grid.view_N[moved], grid.row_N[moved], grid.col_N[moved], grid.separator_N[moved]
    )
    straight = TokenGrid(
        grid.view_N[inside], grid.row_N[inside], grid.col_N[inside], grid.separator_N[inside]
    )
    assert torch.equal(spread(shuffled), spread(straight)[order])
