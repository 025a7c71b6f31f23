"""Entropy of patches, one program per patch.

Shape suffixes: N = patches, K = pixels of a patch, G = grey levels.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from vflowopt_search.ops.entropy import GREY_LEVELS
from vflowopt_search.ops.kernels.launch import FUSED

LARGEST_BLOCK = 1024


def patch_entropy(gray_NK: Tensor) -> Tensor:
    """Shannon entropy of the grey levels of each uint8 patch, in bits, fp32 of shape (N,)."""
    num_patches, num_pixels = gray_NK.shape
    if gray_NK.stride(1) != 1:
        gray_NK = gray_NK.contiguous()
    entropy_N = torch.empty(num_patches, dtype=torch.float32, device=gray_NK.device)
    _patch_entropy[(num_patches,)](
        gray_NK,
        entropy_N,
        gray_NK.stride(0),
        num_pixels,
        math.log2(min(GREY_LEVELS, num_pixels)),
        LEVELS=GREY_LEVELS,
        BLOCK_K=min(triton.next_power_of_2(num_pixels), LARGEST_BLOCK),
        num_warps=1,
        **FUSED,
    )
    return entropy_N


@triton.jit
def _patch_entropy(
    gray: tl.tensor,
    entropy: tl.tensor,
    stride_n: tl.tensor,
    num_pixels: tl.tensor,
    most_bits: tl.tensor,
    LEVELS: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """H = -sum p log2 p over the histogram of one patch, kept within 0..most_bits."""
    patch = tl.program_id(0).to(tl.int64)
    count_G = tl.zeros([LEVELS], dtype=tl.int32)
    for start in range(0, num_pixels, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        inside_K = k < num_pixels
        level_K = tl.load(gray + patch * stride_n + k, mask=inside_K, other=0).to(tl.int32)
        count_G += tl.histogram(level_K, LEVELS, mask=inside_K)
    share_G = count_G.to(tl.float32) / num_pixels
    # log2(1) in the place of log2(0): an absent level carries nothing.
    bits = -tl.sum(share_G * tl.log2(tl.where(count_G > 0, share_G, 1.0)), axis=0)
    tl.store(entropy + patch, tl.minimum(tl.maximum(bits, 0.0), most_bits))
