"""Attention received, in two passes over the logits: each row's log-sum-exp, then column sums.

Both passes compute q k^T again, as much arithmetic as one fused attention; between them only one
number per head and query is kept.

Shape suffixes: B = batch of tiles or prompts, H = heads, Q = queries, N = keys, D = head width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vflowopt_search.ops.kernels.launch import (
    FUSED,
    common_factor,
    head_width,
    rows_contiguous,
)
from vflowopt_search.ops.kernels.rows import load_rows, products

# Rows held in registers, rows streamed past them.
BLOCKS: dict[torch.dtype, dict[str, int]] = {
    torch.float32: {"HELD": 32, "PASSING": 32, "num_warps": 4, "num_stages": 2},
    torch.bfloat16: {"HELD": 128, "PASSING": 64, "num_warps": 8, "num_stages": 3},
    torch.float16: {"HELD": 128, "PASSING": 64, "num_warps": 8, "num_stages": 3},
}
# Finite, so that a block without any allowed key gives no NaN; its terms vanish with the next one.
MASKED = tl.constexpr(-1.0e30)


def attention_received(
    query_BHQD: Tensor,
    key_BHND: Tensor,
    scale: float,
    query_weight_BQ: Tensor | None = None,
    window_N: Tensor | None = None,
) -> Tensor:
    """Mean attention that each key gets, over heads and queries, fp32 of shape (B, N)."""
    query_BHQD, key_BHND = rows_contiguous(query_BHQD), rows_contiguous(key_BHND)
    batch, heads, num_queries, width = query_BHQD.shape
    num_keys = key_BHND.shape[2]
    log_sum_BHQ = query_BHQD.new_empty(batch, heads, num_queries, dtype=torch.float32)
    received_BHN = query_BHQD.new_empty(batch, heads, num_keys, dtype=torch.float32)
    # A weight of 0 becomes +inf here and exp2(-inf) = 0 in the second pass.
    burden_BQ = None if query_weight_BQ is None else -query_weight_BQ.float().log2().contiguous()
    first_N, last_N = (None, None) if window_N is None else _borders(window_N)
    factor = common_factor(query_BHQD, key_BHND)
    strides = [step // factor for x in (query_BHQD, key_BHND) for step in x.stride()[:-1]]
    sizes = (scale * math.log2(math.e), heads, heads // key_BHND.shape[1], num_queries, num_keys)
    inputs = (query_BHQD, key_BHND, burden_BQ, first_N, last_N, log_sum_BHQ)
    options: dict[str, Any] = BLOCKS[query_BHQD.dtype] | FUSED | head_width(width)._asdict()
    if width > 128:
        options["num_stages"] = 2  # or the tiles in flight outgrow the memory of smaller GPUs
    rows, held = batch * heads, options["HELD"]
    _log_sums[(rows * triton.cdiv(num_queries, held),)](
        *inputs, *strides, *sizes, FACTOR=factor, **options
    )
    _column_sums[(rows * triton.cdiv(num_keys, held),)](
        *inputs, received_BHN, *strides, *sizes, FACTOR=factor, **options
    )
    total = num_queries if query_weight_BQ is None else query_weight_BQ.float().sum(-1, True)
    return received_BHN.sum(1) / (total * heads)


def _borders(window_N: Tensor) -> tuple[Tensor, Tensor]:
    """First token of each token's window, and the first behind it."""
    window_N = window_N.contiguous()
    first_N = torch.searchsorted(window_N, window_N, out_int32=True)
    return first_N, torch.searchsorted(window_N, window_N, right=True, out_int32=True)


@triton.jit
def _log_sums(
    query: tl.tensor,
    key: tl.tensor,
    burden: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    log_sum: tl.tensor,
    query_b: tl.tensor,
    query_h: tl.tensor,
    query_q: tl.tensor,
    key_b: tl.tensor,
    key_h: tl.tensor,
    key_n: tl.tensor,
    scale: tl.tensor,
    heads: tl.tensor,
    sharing: tl.tensor,
    num_queries: tl.tensor,
    num_keys: tl.tensor,
    FACTOR: tl.constexpr,
    D: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
    HELD: tl.constexpr,
    PASSING: tl.constexpr,
) -> None:
    """log2 sum_n 2^(scale q k_n) - log2(weight) of HELD queries of one head."""
    num_blocks = tl.cdiv(num_queries, HELD)
    row = (tl.program_id(0) // num_blocks).to(tl.int64)
    b, h = row // heads, row % heads
    q = (tl.program_id(0) % num_blocks) * HELD + tl.arange(0, HELD)
    query += (b * query_b + h * query_h) * FACTOR
    key += (b * key_b + h // sharing * key_h) * FACTOR
    query_QD = load_rows(query, q, query_q, num_queries, FACTOR, D, 0, MAIN)
    rest_QD = query_QD
    if REST > 0:
        rest_QD = load_rows(query, q, query_q, num_queries, FACTOR, D, MAIN, REST)
    begin, end = 0, num_keys
    if first is not None:
        first_Q = tl.load(first + q, mask=q < num_queries, other=num_keys)
        last_Q = tl.load(last + q, mask=q < num_queries, other=0)
        begin, end = tl.min(first_Q, axis=0), tl.max(last_Q, axis=0)
    highest_Q = tl.full([HELD], MASKED, dtype=tl.float32)
    sum_Q = tl.zeros([HELD], dtype=tl.float32)
    for start in range(begin, end, PASSING):
        n = start + tl.arange(0, PASSING)
        logit_QN = scale * products(
            query_QD, rest_QD, key, n, key_n, num_keys, FACTOR, D, MAIN, REST
        )
        allowed_QN = (n < num_keys)[None, :]
        if first is not None:
            allowed_QN = (n[None, :] >= first_Q[:, None]) & (n[None, :] < last_Q[:, None])
        logit_QN = tl.where(allowed_QN, logit_QN, MASKED)
        higher_Q = tl.maximum(highest_Q, tl.max(logit_QN, axis=1))
        sum_Q = sum_Q * tl.exp2(highest_Q - higher_Q)
        sum_Q += tl.sum(tl.exp2(logit_QN - higher_Q[:, None]), axis=1)
        highest_Q = higher_Q
    log_sum_Q = highest_Q + tl.log2(sum_Q)
    if burden is not None:
        log_sum_Q += tl.load(burden + b * num_queries + q, mask=q < num_queries, other=0.0)
    tl.store(log_sum + row * num_queries + q, log_sum_Q, mask=q < num_queries)


@triton.jit
def _column_sums(
    query: tl.tensor,
    key: tl.tensor,
    burden: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    log_sum: tl.tensor,
    received: tl.tensor,
    query_b: tl.tensor,
    query_h: tl.tensor,
    query_q: tl.tensor,
    key_b: tl.tensor,
    key_h: tl.tensor,
    key_n: tl.tensor,
    scale: tl.tensor,
    heads: tl.tensor,
    sharing: tl.tensor,
    num_queries: tl.tensor,
    num_keys: tl.tensor,
    FACTOR: tl.constexpr,
    D: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
    HELD: tl.constexpr,
    PASSING: tl.constexpr,
) -> None:
    """sum_q weight_q 2^(scale q k - log_sum_q) for HELD keys of one head: no two programs meet."""
    num_blocks = tl.cdiv(num_keys, HELD)
    row = (tl.program_id(0) // num_blocks).to(tl.int64)
    b, h = row // heads, row % heads
    n = (tl.program_id(0) % num_blocks) * HELD + tl.arange(0, HELD)
    query += (b * query_b + h * query_h) * FACTOR
    key += (b * key_b + h // sharing * key_h) * FACTOR
    key_ND = load_rows(key, n, key_n, num_keys, FACTOR, D, 0, MAIN)
    rest_ND = key_ND
    if REST > 0:
        rest_ND = load_rows(key, n, key_n, num_keys, FACTOR, D, MAIN, REST)
    begin, end = 0, num_queries
    if first is not None:
        first_N = tl.load(first + n, mask=n < num_keys, other=num_queries)
        last_N = tl.load(last + n, mask=n < num_keys, other=0)
        begin, end = tl.min(first_N, axis=0), tl.max(last_N, axis=0)
    sum_N = tl.zeros([HELD], dtype=tl.float32)
    for start in range(begin, end, PASSING):
        q = start + tl.arange(0, PASSING)
        logit_NQ = scale * products(
            key_ND, rest_ND, query, q, query_q, num_queries, FACTOR, D, MAIN, REST
        )
        log_sum_Q = tl.load(
            log_sum + row * num_queries + q, mask=q < num_queries, other=float("inf")
        )
        share_NQ = tl.exp2(logit_NQ - log_sum_Q[None, :])
        if first is not None:
            same_NQ = (q[None, :] >= first_N[:, None]) & (q[None, :] < last_N[:, None])
            share_NQ = tl.where(same_NQ, share_NQ, 0.0)
        sum_N += tl.sum(share_NQ, axis=1)
    tl.store(received + row * num_keys + n, sum_N, mask=n < num_keys)
