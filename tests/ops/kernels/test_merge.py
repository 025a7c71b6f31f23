from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.ops.kernels.memory import DEVICE, DTYPES, assert_twins, framed, poisoned
from vflowopt_search.ops import merge as definition
from vflowopt_search.ops.kernels import merge as kernel

SHAPES = [(1, 1, 1), (97, 37, 9), (150, 200, 2), (5, 16, 12), (0, 3, 2), (4, 3, 0)]  # N, D, G


def case(tokens: int, width: int, groups: int) -> tuple[Tensor, Tensor, Tensor, int]:
    generator = torch.Generator().manual_seed(tokens)
    features_ND = torch.randn(tokens, width, generator=generator)
    weight_N = torch.randn(tokens, generator=generator)
    group_N = torch.randint(-1, max(groups, 1), (tokens,), generator=generator)
    if groups == 0:
        group_N = torch.full_like(group_N, -1)
    return features_ND.to(DEVICE), weight_N.to(DEVICE), group_N.to(DEVICE), groups


@pytest.mark.parametrize(("tokens", "width", "groups"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scan", [32, 8192])
def test_merging_is_the_definitions(
    tokens: int,
    width: int,
    groups: int,
    dtype: torch.dtype,
    scan: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernel, "LARGEST_SCAN", scan)
    features_ND, weight_N, group_N, num_groups = case(tokens, width, groups)
    arguments = (framed(features_ND.to(dtype)), framed(weight_N), framed(group_N), num_groups)
    with poisoned():
        merged_GD = kernel.merge_tokens(*arguments)
    assert_twins(merged_GD, definition.merge_tokens(*arguments))


def merged(tokens: list[tuple[float, float, int]], num_groups: int) -> list[float]:
    feature_N, weight_N, group_N = (
        torch.tensor(x, device=DEVICE) for x in zip(*tokens, strict=True)
    )
    with poisoned():
        merged_GD = kernel.merge_tokens(feature_N[:, None], weight_N, group_N, num_groups)
    values: list[float] = merged_GD[:, 0].tolist()
    return values


def test_merging_by_hand() -> None:
    assert merged([(10.0, 1.0, 0), (20.0, 3.0, 0), (7.0, 0.5, 2), (99.0, 9.0, -1)], 3) == [
        17.5,
        0,
        7,
    ]


@pytest.mark.parametrize("weights", [(0.0, 0.0), (-1.0, -3.0), (1e-42, 1e-42)])
def test_a_group_without_weight_gets_the_plain_mean(weights: tuple[float, float]) -> None:
    assert merged([(1.0, weights[0], 0), (5.0, weights[1], 0)], 1) == [3]


def test_tokens_outside_every_group_leave_no_trace() -> None:
    nan = float("nan")
    assert merged([(nan, 1.0, -1), (4.0, nan, -1), (2.0, 1.0, 0)], 1) == [2]


def test_a_weight_that_is_no_number_shows() -> None:
    nan = float("nan")
    first, second = merged([(1.0, nan, 0), (2.0, 1.0, 0), (3.0, 1.0, 1)], 2)
    assert first != first
    assert second == 3


def test_the_same_tokens_give_the_same_bits() -> None:
    features_ND, weight_N, group_N, num_groups = case(97, 37, 4)
    first = kernel.merge_tokens(features_ND, weight_N, group_N, num_groups)
    assert torch.equal(first, kernel.merge_tokens(features_ND, weight_N, group_N, num_groups))
