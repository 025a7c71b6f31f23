"""Recycling in two kernels: list each group's members with their shares, then sum their features.

Members are listed in the order of the tokens, so that sums are taken in one order always.

Shape suffixes: N = tokens, D = feature width, G = groups, M = members of a group.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vflowopt_search.ops.kernels.launch import FUSED, rows_contiguous

LARGEST_SCAN = 8192
FEWEST_ROWS, MOST_ROWS = 8, 32
TILE = 4096


def merge_tokens(features_ND: Tensor, weight_N: Tensor, group_N: Tensor, num_groups: int) -> Tensor:
    """Weighted mean of the tokens of each group, shape (G, D), in the features' dtype."""
    features_ND = rows_contiguous(features_ND)
    num_tokens, width = features_ND.shape
    merged_GD = features_ND.new_empty(num_groups, width)
    member_N = group_N.new_empty(num_tokens, dtype=torch.int32)
    share_N = weight_N.new_empty(num_tokens, dtype=torch.float32)
    extent_G2 = group_N.new_empty(num_groups, 2, dtype=torch.int32)
    _list_members[(num_groups,)](
        *(weight_N.contiguous(), group_N.contiguous(), member_N, share_N, extent_G2, num_tokens),
        BLOCK_N=min(LARGEST_SCAN, triton.next_power_of_2(max(1, num_tokens))),
        num_warps=16,
        **FUSED,
    )
    block_m = _rows_at_once(num_tokens, num_groups)
    block_d = min(TILE // block_m, triton.next_power_of_2(max(1, width)))
    _sum_members[(num_groups, triton.cdiv(width, block_d))](
        *(features_ND, member_N, share_N, extent_G2, merged_GD, features_ND.stride(0), width),
        BLOCK_M=block_m,
        BLOCK_D=block_d,
        **FUSED,
    )
    return merged_GD


def _rows_at_once(num_tokens: int, num_groups: int) -> int:
    """About the size of a group: more would be masked, fewer would wait for memory often."""
    size: int = triton.next_power_of_2(max(1, num_tokens // max(1, num_groups)))
    return min(max(size, FEWEST_ROWS), MOST_ROWS)


@triton.jit
def _list_members(
    weight: tl.tensor,
    group: tl.tensor,
    member: tl.tensor,
    share: tl.tensor,
    extent: tl.tensor,
    num_tokens: tl.tensor,
    BLOCK_N: tl.constexpr,
) -> None:
    """Indices and shares of one group's tokens, behind those of the groups before it."""
    g = tl.program_id(0).to(tl.int64)
    before_N = tl.zeros([BLOCK_N], dtype=tl.int32)
    count_N = tl.zeros([BLOCK_N], dtype=tl.int32)
    total_N = tl.zeros([BLOCK_N], dtype=tl.float32)
    for start in range(0, num_tokens, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        group_N = tl.load(group + n, mask=n < num_tokens, other=-1)
        weight_N = tl.load(weight + n, mask=group_N == g, other=0.0).to(tl.float32)
        before_N += ((group_N >= 0) & (group_N < g)).to(tl.int32)
        count_N += (group_N == g).to(tl.int32)
        total_N += tl.where(weight_N < 0, 0.0, weight_N)  # a NaN stays one
    begin = tl.sum(before_N, axis=0)
    count = tl.sum(count_N, axis=0)
    total = tl.sum(total_N, axis=0)
    tl.store(extent + 2 * g, begin)
    tl.store(extent + 2 * g + 1, begin + count)
    # Without weight every member counts the same; an empty group must not divide by 0.
    divisor = tl.where(total == 0, tl.maximum(count, 1).to(tl.float32), total)
    next_place = begin
    for start in range(0, num_tokens, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        mine_N = tl.load(group + n, mask=n < num_tokens, other=-1) == g
        weight_N = tl.load(weight + n, mask=mine_N, other=0.0).to(tl.float32)
        weight_N = tl.where(weight_N < 0, 0.0, weight_N)
        # Not 1 / total, which overflows where the definition does not.
        share_N = tl.div_rn(tl.where(total == 0, 1.0, weight_N), divisor)
        place_N = next_place + tl.cumsum(mine_N.to(tl.int32), axis=0) - 1
        tl.store(member + place_N, n, mask=mine_N)
        tl.store(share + place_N, share_N, mask=mine_N)
        next_place += tl.sum(mine_N.to(tl.int32), axis=0)


@triton.jit
def _sum_members(
    features: tl.tensor,
    member: tl.tensor,
    share: tl.tensor,
    extent: tl.tensor,
    merged: tl.tensor,
    stride_n: tl.tensor,
    width: tl.tensor,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """sum_m share_m features_m for one group and BLOCK_D features; an empty group gives zeros."""
    g = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    begin, end = tl.load(extent + 2 * g), tl.load(extent + 2 * g + 1)
    sum_MD = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    for start in tl.range(begin, end, BLOCK_M, num_stages=3):
        m = start + tl.arange(0, BLOCK_M)
        member_M = tl.load(member + m, mask=m < end, other=0).to(tl.int64)
        share_M = tl.load(share + m, mask=m < end, other=0.0)
        inside_MD = (m < end)[:, None] & (d < width)[None, :]
        place_MD = member_M[:, None] * stride_n + d[None, :]
        features_MD = tl.load(features + place_MD, mask=inside_MD, other=0.0)
        sum_MD += features_MD.to(tl.float32) * share_M[:, None]
    merged_D = tl.sum(sum_MD, axis=0).to(merged.dtype.element_ty)
    tl.store(merged + g * width + d, merged_D, mask=d < width)
