from __future__ import annotations

import math
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage.measure import shannon_entropy
from torch import Tensor

from vflowopt_search.ops.entropy import gray_patches, patch_entropy

SHAPES = [(1, 1), (3, 14 * 14), (7, 16 * 16), (2, 255), (65, 28 * 28), (0, 4)]
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
GREY = st.lists(st.integers(0, 255), min_size=1, max_size=300)


def patch(values: list[int]) -> Tensor:
    return torch.tensor([values], dtype=torch.uint8)


def normalised(rgb_TCHW: Tensor) -> Tensor:
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    return (rgb_TCHW / 255 - mean) / std


def random_rgb(tiles: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(tiles + height + width)
    shape = (tiles, 3, height, width)
    return torch.randint(256, shape, generator=generator, dtype=torch.uint8)


def luma(rgb_TCHW: Tensor) -> Tensor:
    red, green, blue = rgb_TCHW.double().unbind(1)
    return (0.299 * red + 0.587 * green + 0.114 * blue + 1e-9).round().to(torch.uint8)


@pytest.mark.parametrize(("num_patches", "num_pixels"), SHAPES)
@pytest.mark.parametrize("num_levels", [1, 2, 256])
def test_entropy_is_that_of_scikit_image(
    num_patches: int, num_pixels: int, num_levels: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (num_patches, num_pixels)
    gray_NK = torch.randint(num_levels, shape, generator=generator, dtype=torch.uint8)
    expected = [
        shannon_entropy(row, base=2)  # type: ignore[no-untyped-call]
        for row in gray_NK.numpy()
    ]
    torch.testing.assert_close(
        patch_entropy(gray_NK), torch.tensor(expected, dtype=torch.float32), rtol=1e-5, atol=1e-6
    )


def test_entropy_by_hand() -> None:
    gray_NK = torch.tensor([[0, 0, 255, 255], [1, 2, 3, 4], [9, 9, 9, 9]], dtype=torch.uint8)
    assert patch_entropy(gray_NK).tolist() == pytest.approx([1, 2, 0])


@given(GREY)
def test_entropy_lies_between_nothing_and_all_levels(values: list[int]) -> None:
    entropy = patch_entropy(patch(values)).item()
    assert 0 <= entropy <= min(8, math.log2(len(values))) + 1e-6


@given(GREY, st.randoms())
def test_entropy_does_not_see_where_a_pixel_is(values: list[int], random: Random) -> None:
    shuffled = random.sample(values, len(values))
    assert torch.equal(patch_entropy(patch(shuffled)), patch_entropy(patch(values)))


@given(st.integers(0, 255), st.integers(1, 300))
def test_a_constant_patch_has_no_entropy(level: int, num_pixels: int) -> None:
    assert patch_entropy(patch([level] * num_pixels)).item() == 0


def test_all_levels_once_are_eight_bits() -> None:
    assert patch_entropy(patch(list(range(256)))).item() == 8


@given(st.lists(GREY.map(lambda values: values[:1] * 3 + values[-1:]), min_size=1, max_size=5))
def test_patches_do_not_see_each_other(patches: list[list[int]]) -> None:
    together = patch_entropy(torch.tensor(patches, dtype=torch.uint8))
    assert torch.equal(together, torch.cat([patch_entropy(patch(values)) for values in patches]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_grey_levels_come_back_from_normalised_pixels(dtype: torch.dtype) -> None:
    rgb_TCHW = random_rgb(2, 6, 4)
    gray_TPK = gray_patches(normalised(rgb_TCHW).to(dtype), MEAN, STD, 1)
    assert gray_TPK.dtype == torch.uint8
    assert torch.equal(gray_TPK.view(2, 6, 4), luma(rgb_TCHW))


def test_every_grey_level_is_its_own_luma() -> None:
    level_TCHW = torch.arange(256).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    gray_TPK = gray_patches(normalised(level_TCHW), MEAN, STD, 16)
    assert gray_TPK.flatten().tolist() == list(range(256))


def test_luma_weighs_red_green_and_blue() -> None:
    rgb_TCHW = torch.eye(3).mul(255).view(1, 3, 1, 3)
    assert gray_patches(normalised(rgb_TCHW), MEAN, STD, 1).flatten().tolist() == [76, 150, 29]


def test_halves_round_up() -> None:
    rgb_TCHW = torch.tensor([0, 0, 250.0]).view(1, 3, 1, 1)  # luma 28.5
    assert gray_patches(normalised(rgb_TCHW), MEAN, STD, 1).item() == 29


def test_values_beyond_the_range_are_clamped() -> None:
    pixels_TCHW = torch.tensor([-100.0, 100.0]).view(1, 1, 1, 2).expand(1, 3, 1, 2)
    assert gray_patches(pixels_TCHW, MEAN, STD, 1).flatten().tolist() == [0, 255]


def test_patches_are_in_raster_order_and_leave_out_the_rest() -> None:
    rgb_TCHW = random_rgb(3, 7, 5)  # three rows and two columns of whole 2 x 2 patches
    gray_TPK = gray_patches(normalised(rgb_TCHW), MEAN, STD, 2)
    gray_THW = luma(rgb_TCHW)
    expected = [
        gray_THW[:, row : row + 2, col : col + 2].flatten(1) for row in (0, 2, 4) for col in (0, 2)
    ]
    assert torch.equal(gray_TPK, torch.stack(expected, 1))
