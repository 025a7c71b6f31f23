from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from vflowopt_search.ops import attention
from vflowopt_search.ops.attention import attention_received, text_attention

SHAPES = [(1, 1), (3, 7), (257, 257), (64, 33)]  # (queries, keys)
HEADS = [(1, 1), (4, 4), (6, 2), (4, 1)]  # (query heads, key heads)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def projections(
    queries: int, keys: int, heads: tuple[int, int] = (4, 4), dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(queries + keys)
    query_BHQD = torch.randn(2, heads[0], queries, 5, generator=generator) * 3
    key_BHND = torch.randn(2, heads[1], keys, 5, generator=generator)
    return query_BHQD.to(dtype), key_BHND.to(dtype)


def whole_map(query_BHQD: Tensor, key_BHND: Tensor, scale: float) -> Tensor:
    """The attention of every head, in double precision and materialised, (B, H, Q, N)."""
    key_BHND = key_BHND.repeat_interleave(query_BHQD.shape[1] // key_BHND.shape[1], dim=1)
    return (query_BHQD.double() @ key_BHND.double().mT * scale).softmax(-1)


@pytest.mark.parametrize(("queries", "keys"), SHAPES)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", [1, 5, 512])
def test_received_is_the_mean_of_the_whole_map(
    queries: int,
    keys: int,
    heads: tuple[int, int],
    dtype: torch.dtype,
    block: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "QUERIES_AT_ONCE", block)
    query_BHQD, key_BHND = projections(queries, keys, heads, dtype)
    received_BN = attention_received(query_BHQD, key_BHND, 0.4)
    expected_BN = whole_map(query_BHQD, key_BHND, 0.4).mean((1, 2)).float()
    assert received_BN.dtype == torch.float32
    torch.testing.assert_close(received_BN, expected_BN, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("block", [1, 3, 512])
@pytest.mark.parametrize("as_type", [torch.bool, torch.float32])
def test_weights_choose_the_queries_of_the_mean(
    block: int, as_type: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "QUERIES_AT_ONCE", block)
    query_BHQD, key_BHND = projections(7, 7)
    chosen = [[0, 4], [6]]
    weight_BQ = torch.zeros(2, 7, dtype=as_type)
    for row, queries in enumerate(chosen):
        weight_BQ[row, queries] = 1
    received_BN = attention_received(query_BHQD, key_BHND, 0.4, weight_BQ)
    map_BQN = whole_map(query_BHQD, key_BHND, 0.4).mean(1)
    expected_BN = torch.stack([map_BQN[row, queries].mean(0) for row, queries in enumerate(chosen)])
    torch.testing.assert_close(received_BN, expected_BN.float(), rtol=1e-5, atol=1e-6)


def test_only_the_proportions_of_the_weights_count() -> None:
    query_BHQD, key_BHND = projections(7, 7)
    weight_BQ = torch.arange(14.0).view(2, 7)
    torch.testing.assert_close(
        attention_received(query_BHQD, key_BHND, 0.4, 8 * weight_BQ),
        attention_received(query_BHQD, key_BHND, 0.4, weight_BQ),
        rtol=0,
        atol=0,
    )


@pytest.mark.parametrize(("queries", "keys"), SHAPES)
def test_received_sums_to_one(queries: int, keys: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "QUERIES_AT_ONCE", 2)
    received_BN = attention_received(*projections(queries, keys), 0.4)
    torch.testing.assert_close(received_BN.sum(-1), torch.ones(2), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("block", [1, 3, 512])
def test_windows_do_not_see_each_other(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "QUERIES_AT_ONCE", block)
    query_BHQD, key_BHND = projections(9, 9)
    sizes, weight_BQ = [4, 1, 4], torch.rand(2, 9) + 0.1
    window_N = torch.tensor([0] * 4 + [1] + [5] * 4)
    received_BN = attention_received(query_BHQD, key_BHND, 0.4, weight_BQ, window_N)
    alone = [
        attention_received(query, key, 0.4, weight) * weight.sum(-1, keepdim=True)
        for query, key, weight in zip(
            torch.split(query_BHQD, sizes, 2),
            torch.split(key_BHND, sizes, 2),
            torch.split(weight_BQ, sizes, 1),
            strict=True,
        )
    ]
    expected_BN = torch.cat(alone, 1) / weight_BQ.sum(-1, keepdim=True)
    torch.testing.assert_close(received_BN, expected_BN, rtol=1e-5, atol=1e-6)


def test_one_window_is_no_window() -> None:
    query_BHQD, key_BHND = projections(9, 9)
    one_window_N = torch.full((9,), 3)
    assert torch.equal(
        attention_received(query_BHQD, key_BHND, 0.4, window_N=one_window_N),
        attention_received(query_BHQD, key_BHND, 0.4),
    )


def test_double_precision_stays_double() -> None:
    query_BHQD, key_BHND = projections(9, 9, dtype=torch.float64)
    map_BQN = whole_map(query_BHQD, key_BHND, 0.4).mean(1)
    chosen_BQ = torch.ones(2, 9, dtype=torch.bool)
    received_BN = attention_received(query_BHQD, key_BHND, 0.4, chosen_BQ)
    seen_BN = text_attention(query_BHQD[:, :, -1], key_BHND, 0.4)
    torch.testing.assert_close(received_BN, map_BQN.mean(1), rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(seen_BN, map_BQN[:, -1], rtol=1e-13, atol=1e-14)


def test_blocks_that_share_memory_are_as_exact_as_those_that_keep_theirs_for_a_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "QUERIES_AT_ONCE", 3)
    query_BHQD, key_BHND = projections(8, 7)
    shared_BN = attention_received(query_BHQD, key_BHND, 0.4)
    query_BHQD.requires_grad_()
    kept_BN = attention_received(query_BHQD, key_BHND, 0.4)
    assert torch.equal(kept_BN, shared_BN)
    [found] = torch.autograd.grad(kept_BN[:, 0].sum(), [query_BHQD])
    in_one = whole_map(query_BHQD, key_BHND, 0.4).mean((1, 2))
    [expected] = torch.autograd.grad(in_one[:, 0].sum(), [query_BHQD])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


def test_a_gradient_of_the_weights_alone_is_right_in_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "QUERIES_AT_ONCE", 3)
    query_BHQD, key_BHND = projections(8, 7)
    weight_BQ = torch.rand(2, 8, requires_grad=True)
    received_BN = attention_received(query_BHQD, key_BHND, 0.4, weight_BQ)
    [found] = torch.autograd.grad(received_BN[:, 0].sum(), [weight_BQ])
    map_BQN = whole_map(query_BHQD, key_BHND, 0.4).mean(1)
    share_BQ = weight_BQ / weight_BQ.sum(-1, keepdim=True)
    in_one = (map_BQN * share_BQ[..., None]).sum(1)
    [expected] = torch.autograd.grad(in_one[:, 0].sum(), [weight_BQ])
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=1e-4, atol=1e-6)


def test_blocks_share_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large blocks of their own would each be asked of the system anew, which takes longest."""
    monkeypatch.setattr(attention, "QUERIES_AT_ONCE", 2)
    found: list[int] = []
    softmax = torch.softmax

    def spied(*given: Any, **options: Any) -> Tensor:
        rows_BHQN: Tensor = softmax(*given, **options)
        found.append(rows_BHQN.data_ptr())
        return rows_BHQN

    monkeypatch.setattr(torch, "softmax", spied)
    query_BHQD, key_BHND = projections(7, 7)
    attention_received(query_BHQD, key_BHND, 0.4)
    assert len(found) == 4 and len(set(found)) == 1


def test_logits_too_large_for_half_precision_stay_finite() -> None:
    query_BHQD, key_BHND = projections(9, 9, dtype=torch.float16)
    received_BN = attention_received(query_BHQD * 100, key_BHND * 100, 10.0)
    expected_BN = whole_map(query_BHQD * 100, key_BHND * 100, 10.0).mean((1, 2)).float()
    torch.testing.assert_close(received_BN, expected_BN, rtol=1e-4, atol=1e-4)


def test_autocast_does_not_lower_the_precision() -> None:
    query_BHQD, key_BHND = projections(9, 9)
    outside = attention_received(query_BHQD, key_BHND, 0.4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attention_received(query_BHQD, key_BHND, 0.4), outside)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("keys", [1, 7, 257])
def test_text_attention_is_the_row_of_the_last_query(
    keys: int, heads: tuple[int, int], dtype: torch.dtype
) -> None:
    query_BHQD, key_BHND = projections(3, keys, heads, dtype)
    seen_BN = text_attention(query_BHQD[:, :, -1], key_BHND, 0.4)
    expected_BN = whole_map(query_BHQD, key_BHND, 0.4)[:, :, -1].mean(1).float()
    assert seen_BN.dtype == torch.float32
    torch.testing.assert_close(seen_BN, expected_BN, rtol=1e-5, atol=1e-6)


def test_padding_is_not_attended_to() -> None:
    query_BHQD, key_BHND = projections(1, 7)
    valid_BN = torch.ones(2, 7, dtype=torch.bool)
    valid_BN[1, :3] = False
    key_BHND[1, :, :3] = 1e4
    seen_BN = text_attention(query_BHQD[:, :, 0], key_BHND, 0.4, valid_BN)
    alone_BN = text_attention(query_BHQD[1:, :, 0], key_BHND[1:, :, 3:], 0.4)
    assert seen_BN[1, :3].tolist() == [0, 0, 0]
    torch.testing.assert_close(seen_BN[1:, 3:], alone_BN, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(seen_BN.sum(-1), torch.ones(2), rtol=1e-5, atol=1e-6)
