from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from tests.ops.kernels.memory import DEVICE, DTYPES, assert_twins, framed, poisoned
from vflowopt_search.ops import attention as definition
from vflowopt_search.ops.kernels import received_attention as kernel
from vflowopt_search.ops.kernels.launch import head_width


class Shape(NamedTuple):
    """Sizes of one case."""

    queries: int
    keys: int
    heads: int
    key_heads: int
    width: int


SHAPES = [
    Shape(1, 1, 1, 1, 5),
    Shape(33, 7, 2, 2, 16),
    Shape(3, 197, 4, 2, 72),
    Shape(130, 65, 2, 1, 88),
    Shape(70, 33, 1, 1, 128),
]
WINDOWS = [[1] * 40, [3, 1, 64, 2], [70], [32, 32, 6], [69, 1]]


def projections(shape: Shape, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(sum(shape))
    query_BHQD = torch.randn(2, shape.heads, shape.queries, shape.width, generator=generator) * 3
    key_BHND = torch.randn(2, shape.key_heads, shape.keys, shape.width, generator=generator)
    return query_BHQD.to(DEVICE, dtype), key_BHND.to(DEVICE, dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_received_attention_is_the_definitions(shape: Shape, dtype: torch.dtype) -> None:
    query_BHQD, key_BHND = map(framed, projections(shape, dtype))
    with poisoned():
        received_BN = kernel.attention_received(query_BHQD, key_BHND, 0.4)
    assert_twins(received_BN, definition.attention_received(query_BHQD, key_BHND, 0.4))


def by_columns(values: Tensor) -> Tensor:
    return values.T.contiguous().T


@pytest.mark.parametrize("as_type", [torch.bool, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("laid_out", [framed, by_columns])
def test_weights_choose_the_queries_of_the_mean(
    as_type: torch.dtype, laid_out: Callable[[Tensor], Tensor]
) -> None:
    query_BHQD, key_BHND = projections(Shape(70, 70, 2, 2, 24), torch.bfloat16)
    weight_BQ = (torch.arange(140, device=DEVICE).view(2, 70) % 3).to(as_type)
    with poisoned():
        received_BN = kernel.attention_received(query_BHQD, key_BHND, 0.4, laid_out(weight_BQ))
    expected_BN = definition.attention_received(query_BHQD, key_BHND, 0.4, weight_BQ)
    assert_twins(received_BN, expected_BN)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("sizes", WINDOWS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_windows_do_not_see_each_other(
    sizes: list[int], weighted: bool, dtype: torch.dtype
) -> None:
    length = sum(sizes)
    query_BHQD, key_BHND = projections(Shape(length, length, 2, 1, 16), dtype)
    names = torch.arange(len(sizes), device=DEVICE) * 3 - 4
    window_N = framed(torch.repeat_interleave(names, torch.tensor(sizes, device=DEVICE)))
    weight_BQ = (torch.arange(2 * length, device=DEVICE).view(2, -1) % 3).float()
    chosen_BQ = weight_BQ if weighted else None
    with poisoned():
        received_BN = kernel.attention_received(query_BHQD, key_BHND, 0.4, chosen_BQ, window_N)
    expected_BN = definition.attention_received(query_BHQD, key_BHND, 0.4, chosen_BQ, window_N)
    assert_twins(received_BN, expected_BN)


def test_a_layout_by_tokens_is_read_in_place() -> None:
    query_BHQD, key_BHND = projections(Shape(40, 40, 2, 2, 72), torch.float16)
    query_by_token, key_by_token = (
        x.transpose(1, 2).contiguous().transpose(1, 2) for x in (query_BHQD, key_BHND)
    )
    with poisoned():
        received_BN = kernel.attention_received(query_by_token, key_by_token, 0.4)
    assert torch.equal(received_BN, kernel.attention_received(query_BHQD, key_BHND, 0.4))


def test_logits_too_large_for_half_precision_stay_finite() -> None:
    # sums of whole numbers are exact in any order, so that no near tie depends on the CPU
    query_BHQD, key_BHND = (
        (each * 40).round() for each in projections(Shape(9, 9, 1, 1, 16), torch.float16)
    )
    logits_BHQN = query_BHQD.float() @ key_BHND.float().transpose(-1, -2) * 10
    assert logits_BHQN.abs().max() > torch.finfo(torch.float16).max
    received_BN = kernel.attention_received(query_BHQD, key_BHND, 10.0)
    expected_BN = definition.attention_received(query_BHQD, key_BHND, 10.0)
    assert_twins(received_BN, expected_BN)


def test_a_head_is_cut_into_widths_that_products_take() -> None:
    for width in range(1, 300):
        parts = [part for part in head_width(width)[1:] if part]
        assert all(part >= 16 and part & (part - 1) == 0 for part in parts), width
        assert width <= sum(parts) < max(2 * width, 17), width


def test_72_features_are_cut_into_64_and_16() -> None:
    assert head_width(72) == (72, 64, 16)
    assert head_width(128) == (128, 128, 0)
    assert head_width(120) == (120, 128, 0)
