from __future__ import annotations

from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vflowopt_search.ops.merge import merge_tokens

Token = tuple[float, float, int]  # feature, weight, group
TOKENS = st.lists(
    st.tuples(st.floats(-9, 9, width=32), st.floats(-1, 5, width=32), st.integers(-1, 3)),
    min_size=1,
    max_size=20,
)


def merged(tokens: list[Token], num_groups: int = 4) -> Tensor:
    feature_N, weight_N, group_N = (torch.tensor(part) for part in zip(*tokens, strict=True))
    return merge_tokens(feature_N[:, None].float(), weight_N.float(), group_N, num_groups)[:, 0]


def test_merging_by_hand() -> None:
    tokens = [(10.0, 1.0, 0), (20.0, 3.0, 0), (7.0, 0.5, 2), (99.0, 9.0, -1)]
    assert merged(tokens, 3).tolist() == [17.5, 0, 7]


@pytest.mark.parametrize("weights", [(0.0, 0.0), (-1.0, -3.0)])
def test_a_group_without_weight_gets_the_plain_mean(weights: tuple[float, float]) -> None:
    assert merged([(1.0, weights[0], 0), (5.0, weights[1], 0)], 1).tolist() == [3]


def test_a_negative_weight_counts_as_none() -> None:
    assert merged([(1.0, 2.0, 0), (5.0, -1.0, 0)], 1).tolist() == [1]


def test_one_part_per_weight_however_small() -> None:
    assert merged([(1.0, 1e-42, 0), (5.0, 1e-42, 0)], 1).tolist() == [3]


def test_tokens_outside_every_group_leave_no_trace() -> None:
    tokens = [(float("nan"), 1.0, -1), (4.0, float("nan"), -1), (2.0, 1.0, 0)]
    assert merged(tokens, 1).tolist() == [2]


@given(TOKENS)
def test_a_merged_token_lies_among_its_members(tokens: list[Token]) -> None:
    for group, value in enumerate(merged(tokens).tolist()):
        members = [feature for feature, _, home in tokens if home == group] or [0.0]
        assert min(members) - 1e-4 <= value <= max(members) + 1e-4


@given(TOKENS, st.floats(0.25, 4, width=32))
def test_only_the_proportions_of_the_weights_count(tokens: list[Token], factor: float) -> None:
    scaled = [(feature, weight * factor, home) for feature, weight, home in tokens]
    torch.testing.assert_close(merged(scaled), merged(tokens), rtol=1e-4, atol=1e-4)


@given(TOKENS, st.randoms())
def test_order_does_not_matter(tokens: list[Token], random: Random) -> None:
    shuffled = random.sample(tokens, len(tokens))
    torch.testing.assert_close(merged(shuffled), merged(tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_sums_are_taken_in_fp32_at_least(dtype: torch.dtype) -> None:
    features_ND = torch.randn(1000, 3).to(dtype) + 8
    weight_N, group_N = torch.rand(1000).to(dtype), torch.zeros(1000, dtype=torch.int64)
    share_N = weight_N.double() / weight_N.double().sum()
    expected = (share_N[:, None] * features_ND.double()).sum(0, keepdim=True)
    merged_GD = merge_tokens(features_ND, weight_N, group_N, 1)
    torch.testing.assert_close(merged_GD, expected.to(dtype), rtol=1e-12, atol=0)


def test_gradients_are_finite_where_weights_vanish() -> None:
    features_ND = torch.randn(4, 3, requires_grad=True)
    weight_N = torch.tensor([0.0, 0.0, 1.0, 2.0], requires_grad=True)
    merged_GD = merge_tokens(features_ND, weight_N, torch.tensor([0, 0, 1, -1]), 2)
    feature_grad, weight_grad = torch.autograd.grad(merged_GD.sum(), [features_ND, weight_N])
    assert feature_grad.tolist() == [[0.5] * 3, [0.5] * 3, [1.0] * 3, [0.0] * 3]
    assert weight_grad.isfinite().all()
