from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.ops.kernels.memory import DEVICE, assert_twins, framed, poisoned
from vflowopt_search.ops import entropy as definition
from vflowopt_search.ops.kernels import entropy as kernel

SHAPES = [(1, 1), (3, 14 * 14), (7, 16 * 16), (2, 255), (65, 28 * 28), (2, 1100), (0, 4)]


def gray(num_patches: int, num_pixels: int, num_levels: int) -> Tensor:
    generator = torch.Generator().manual_seed(num_patches + num_pixels)
    shape = (num_patches, num_pixels)
    level_NK = torch.randint(num_levels, shape, generator=generator, dtype=torch.uint8)
    return (255 - level_NK).to(DEVICE)


@pytest.mark.parametrize(("num_patches", "num_pixels"), SHAPES)
@pytest.mark.parametrize("num_levels", [1, 2, 256])
def test_entropy_is_the_definitions(num_patches: int, num_pixels: int, num_levels: int) -> None:
    gray_NK = framed(gray(num_patches, num_pixels, num_levels))
    with poisoned():
        entropy_N = kernel.patch_entropy(gray_NK)
    assert_twins(entropy_N, definition.patch_entropy(gray_NK))


def test_entropy_by_hand() -> None:
    levels = [[0, 0, 255, 255], [1, 2, 3, 4], [9, 9, 9, 9], [0, 0, 0, 0]]
    with poisoned():
        entropy_N = kernel.patch_entropy(torch.tensor(levels, dtype=torch.uint8, device=DEVICE))
    assert entropy_N.tolist() == [1, 2, 0, 0]


def test_columns_of_pixels_are_read_as_such() -> None:
    gray_NK = gray(30, 5, 4).T
    assert_twins(kernel.patch_entropy(gray_NK), definition.patch_entropy(gray_NK))
