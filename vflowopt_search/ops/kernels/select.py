"""Gather hidden states, positions and masks in one launch.

Shape suffixes: B = batch, N = tokens, K = kept tokens, D = feature width, A = axes of a position.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from vflowopt_search.ops.kernels.launch import (
    FUSED,
    common_factor,
    rows_contiguous,
)
from vflowopt_search.ops.select import Tokens

BLOCK_K = 8
BLOCK_D = 512


def select_tokens(tokens: Tokens, index_BK: Tensor) -> Tokens:
    """Tokens `index_BK` (int64, 0..N-1) of each row, in that order."""
    hidden_BND, position_ABN, valid_BN = rows_contiguous(tokens.hidden_BND), *tokens[1:]
    (batch, num_kept), width = index_BK.shape, hidden_BND.shape[2]
    kept = Tokens(hidden_BND.new_empty(batch, num_kept, width))
    axes = 0
    position_strides: tuple[int, ...] = (0, 0, 0)
    valid_strides: tuple[int, ...] = (0, 0)
    if position_ABN is not None:
        axes = position_ABN.shape[0]
        position_strides = position_ABN.expand(-1, batch, -1).stride()
        kept = kept._replace(position_ABN=position_ABN.new_empty(axes, batch, num_kept))
    if valid_BN is not None:
        valid_strides = valid_BN.stride()
        kept = kept._replace(valid_BN=valid_BN.new_empty(batch, num_kept))
    factor = common_factor(hidden_BND, kept.hidden_BND)
    hidden_strides = [step // factor for step in hidden_BND.stride()[:2]]
    _select_tokens[(triton.cdiv(num_kept, BLOCK_K) * batch, max(1, triton.cdiv(width, BLOCK_D)))](
        *(hidden_BND, position_ABN, valid_BN, index_BK, *kept),
        *(*hidden_strides, *position_strides, *valid_strides, *index_BK.stride()),
        *(batch, num_kept, axes, width // factor),
        FACTOR=factor,
        BLOCK_K=BLOCK_K,
        BLOCK_D=BLOCK_D,
        **FUSED,
    )
    return kept


@triton.jit
def _select_tokens(
    hidden: tl.tensor,
    position: tl.tensor,
    valid: tl.tensor,
    index: tl.tensor,
    kept_hidden: tl.tensor,
    kept_position: tl.tensor,
    kept_valid: tl.tensor,
    hidden_b: tl.tensor,
    hidden_n: tl.tensor,
    position_a: tl.tensor,
    position_b: tl.tensor,
    position_n: tl.tensor,
    valid_b: tl.tensor,
    valid_n: tl.tensor,
    index_b: tl.tensor,
    index_k: tl.tensor,
    batch: tl.tensor,
    num_kept: tl.tensor,
    axes: tl.tensor,
    width: tl.tensor,
    FACTOR: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """BLOCK_K kept tokens by BLOCK_D features; the first block of features takes the rest along."""
    num_blocks = tl.cdiv(num_kept, BLOCK_K)
    b = (tl.program_id(0) // num_blocks).to(tl.int64)
    k = (tl.program_id(0) % num_blocks) * BLOCK_K + tl.arange(0, BLOCK_K).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside_K = k < num_kept
    n_K = tl.load(index + b * index_b + k * index_k, mask=inside_K, other=0)
    inside_KD = inside_K[:, None] & (d < width * FACTOR)[None, :]
    from_KD = (b * hidden_b + n_K * hidden_n)[:, None] * FACTOR + d[None, :]
    to_KD = ((b * num_kept + k) * width)[:, None] * FACTOR + d[None, :]
    tl.store(
        kept_hidden + to_KD, tl.load(hidden + from_KD, mask=inside_KD, other=0), mask=inside_KD
    )
    if tl.program_id(1) == 0:
        if position is not None:
            for a in range(axes):
                from_K = a * position_a + b * position_b + n_K * position_n
                to_K = (a * batch + b) * num_kept + k
                position_K = tl.load(position + from_K, mask=inside_K, other=0)
                tl.store(kept_position + to_K, position_K, mask=inside_K)
        if valid is not None:
            valid_K = tl.load(valid + b * valid_b + n_K * valid_n, mask=inside_K, other=0)
            tl.store(kept_valid + b * num_kept + k, valid_K, mask=inside_K)
