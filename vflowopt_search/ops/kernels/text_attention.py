"""Attention of one query per row, in two kernels: logits with their blocks' sums, then shares.

Query heads that share a key head go through one product, so that every key is read once.

Shape suffixes: B = batch of prompts, H = heads, G = query heads of a key head, N = keys,
D = head width, C = blocks of keys.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from vflowopt_search.ops.kernels.launch import (
    FUSED,
    SMALLEST_DOT,
    common_factor,
    head_width,
    rows_contiguous,
)
from vflowopt_search.ops.kernels.rows import load_rows, products

BLOCK_N = 64


def text_attention(
    query_BHD: Tensor, key_BHND: Tensor, scale: float, valid_BN: Tensor | None = None
) -> Tensor:
    """Attention of one query per row to each key, mean over heads, fp32 of shape (B, N)."""
    query_BHD, key_BHND = rows_contiguous(query_BHD), rows_contiguous(key_BHND)
    batch, heads, width = query_BHD.shape
    key_heads, num_keys = key_BHND.shape[1:3]
    valid_BN = None if valid_BN is None else valid_BN.contiguous()
    num_blocks = triton.cdiv(num_keys, BLOCK_N)
    logit_BHN = query_BHD.new_empty(batch, heads, num_keys, dtype=torch.float32)
    highest_BHC = query_BHD.new_empty(batch, heads, num_blocks, dtype=torch.float32)
    sum_BHC = torch.empty_like(highest_BHC)
    seen_BN = query_BHD.new_empty(batch, num_keys, dtype=torch.float32)
    factor = common_factor(query_BHD, key_BHND)
    strides = [step // factor for x in (query_BHD, key_BHND) for step in x.stride()[:-1]]
    outputs = (logit_BHN, highest_BHC, sum_BHC)
    sharing = heads // key_heads
    _logits[(num_blocks * batch * key_heads,)](
        *(query_BHD, key_BHND, valid_BN, *outputs),
        *strides,
        *(scale * math.log2(math.e), key_heads, sharing, num_keys),
        FACTOR=factor,
        **head_width(width)._asdict(),
        BLOCK_G=max(SMALLEST_DOT, triton.next_power_of_2(sharing)),
        BLOCK_N=BLOCK_N,
        num_warps=8,
        **FUSED,
    )
    _shares[(num_blocks * batch,)](
        *(*outputs, seen_BN, heads, num_keys),
        BLOCK_C=triton.next_power_of_2(num_blocks),
        BLOCK_N=BLOCK_N,
        **FUSED,
    )
    return seen_BN


@triton.jit
def _logits(
    query: tl.tensor,
    key: tl.tensor,
    valid: tl.tensor,
    logit: tl.tensor,
    highest: tl.tensor,
    sums: tl.tensor,
    query_b: tl.tensor,
    query_h: tl.tensor,
    key_b: tl.tensor,
    key_h: tl.tensor,
    key_n: tl.tensor,
    scale: tl.tensor,
    key_heads: tl.tensor,
    sharing: tl.tensor,
    num_keys: tl.tensor,
    FACTOR: tl.constexpr,
    D: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """Logits (base 2) of the query heads of one key head, their maximum and sum of powers."""
    num_blocks = tl.cdiv(num_keys, BLOCK_N)
    block = tl.program_id(0) % num_blocks
    row = (tl.program_id(0) // num_blocks).to(tl.int64)
    b, shared = row // key_heads, row % key_heads
    g = tl.arange(0, BLOCK_G)
    n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    query += (b * query_b + shared * sharing * query_h) * FACTOR
    key += (b * key_b + shared * key_h) * FACTOR
    query_GD = load_rows(query, g, query_h, sharing, FACTOR, D, 0, MAIN)
    rest_GD = query_GD
    if REST > 0:
        rest_GD = load_rows(query, g, query_h, sharing, FACTOR, D, MAIN, REST)
    logit_GN = scale * products(query_GD, rest_GD, key, n, key_n, num_keys, FACTOR, D, MAIN, REST)
    seen_N = n < num_keys
    if valid is not None:
        seen_N &= tl.load(valid + b * num_keys + n, mask=seen_N, other=0) != 0
    logit_GN = tl.where(seen_N[None, :], logit_GN, float("-inf"))
    highest_G = tl.max(logit_GN, axis=1)
    # A block of padding alone has no maximum; any finite number makes its powers 0.
    base_G = tl.where(highest_G == float("-inf"), 0.0, highest_G)
    sum_G = tl.sum(tl.exp2(logit_GN - base_G[:, None]), axis=1)
    place_G = row * sharing + g
    inside_GN = (g < sharing)[:, None] & (n < num_keys)[None, :]
    tl.store(logit + place_G[:, None] * num_keys + n[None, :], logit_GN, mask=inside_GN)
    tl.store(highest + place_G * num_blocks + block, highest_G, mask=g < sharing)
    tl.store(sums + place_G * num_blocks + block, sum_G, mask=g < sharing)


@triton.jit
def _shares(
    logit: tl.tensor,
    highest: tl.tensor,
    sums: tl.tensor,
    seen: tl.tensor,
    heads: tl.tensor,
    num_keys: tl.tensor,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """Softmax of one block of keys, mean over heads; every program sums the blocks again."""
    num_blocks = tl.cdiv(num_keys, BLOCK_N)
    b = (tl.program_id(0) // num_blocks).to(tl.int64)
    n = (tl.program_id(0) % num_blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    c = tl.arange(0, BLOCK_C)
    share_N = tl.zeros([BLOCK_N], dtype=tl.float32)
    for h in range(heads):
        row = b * heads + h
        place_C = row * num_blocks + c
        highest_C = tl.load(highest + place_C, mask=c < num_blocks, other=float("-inf"))
        sum_C = tl.load(sums + place_C, mask=c < num_blocks, other=0.0)
        top = tl.max(highest_C, axis=0)
        total = tl.sum(sum_C * tl.exp2(highest_C - top), axis=0)
        logit_N = tl.load(logit + row * num_keys + n, mask=n < num_keys, other=float("-inf"))
        share_N += tl.exp2(logit_N - top) / total
    tl.store(seen + b * num_keys + n, share_N / heads, mask=n < num_keys)
