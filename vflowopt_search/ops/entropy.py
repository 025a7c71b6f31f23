"""Entropy of the pixels behind each visual token (algorithms.md 1.1, step 5).

Shape suffixes: T = tiles, C = colour channels, H, W = pixel rows and columns of a tile,
P = patches of a tile, N = patches, K = pixels of a patch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

GREY_LEVELS = 256
# Thousandths, so that the weighted sum is exact and every device rounds it alike.
LUMA = (299, 587, 114)


def gray_patches(
    pixels_TCHW: Tensor, mean: Sequence[float], std: Sequence[float], patch_size: int
) -> Tensor:
    """Grey levels 0..255 of each patch of normalised RGB tiles, uint8 of shape (T, P, K).

    `mean` and `std` are those of the image processor, pixel = (x / 255 - mean) / std. Patches
    are in raster order; like the patch embedding, pixels beyond the last whole patch are left out.
    """
    scale_C11 = pixels_TCHW.new_tensor(std, dtype=torch.float32)[:, None, None]
    shift_C11 = pixels_TCHW.new_tensor(mean, dtype=torch.float32)[:, None, None]
    rgb_TCHW = (pixels_TCHW.float() * scale_C11 + shift_C11).mul(255).round().clamp(0, 255).int()
    luma_C11 = rgb_TCHW.new_tensor(LUMA)[:, None, None]
    gray_THW = ((rgb_TCHW * luma_C11).sum(1) + 500) // 1000
    patches = gray_THW.to(torch.uint8).unfold(1, patch_size, patch_size)
    patches = patches.unfold(2, patch_size, patch_size)
    return patches.flatten(1, 2).flatten(2)


def patch_entropy(gray_NK: Tensor) -> Tensor:
    """Shannon entropy of the grey levels of each uint8 patch, in bits, fp32 of shape (N,).

    At least 0 (one grey level) and at most min(8, log2 K).
    """
    num_patches, num_pixels = gray_NK.shape
    count_NG = torch.zeros(num_patches, GREY_LEVELS, device=gray_NK.device)
    one = torch.ones(1, 1, device=gray_NK.device).expand(num_patches, num_pixels)
    count_NG.scatter_add_(1, gray_NK.long(), one)
    entropy_N: Tensor = torch.special.entr(count_NG / num_pixels).sum(-1) / math.log(2)
    return entropy_N.clamp(0, math.log2(min(GREY_LEVELS, num_pixels)))
