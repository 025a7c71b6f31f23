"""Every visual token of a prompt has a place: the grids match what the processor wrote."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from transformers import BatchFeature

from tests.tiny import PATCH, TILE, tiny_model, tiny_processor
from vflowopt_search.adapters.base import raster, rows_with_separators
from vflowopt_search.adapters.registry import adapter_for
from vflowopt_search.importance.signals import ImageGeometry

SIDE = TILE // PATCH
SIZES = [(56, 56), (28, 28), (1, 1), (1, 200), (400, 3), (90, 31), (17, 60), (57, 56), (112, 112)]
WIDE = [[TILE * h, TILE * w] for h in range(1, 7) for w in range(1, 7)]


def geometry(size: tuple[int, int], pinpoints: list[list[int]]) -> tuple[ImageGeometry, int]:
    """Geometry of one noise image and the number of placeholders the processor wrote."""
    model, processor = tiny_model("llava_onevision"), tiny_processor("llava_onevision")
    model.config.image_grid_pinpoints = pinpoints
    processor.image_processor.image_grid_pinpoints = pinpoints
    inputs: BatchFeature = processor(
        text=["<image> how many"], images=[[Image.new("RGB", size)]], return_tensors="pt"
    )
    call = {k: v for k, v in inputs.items() if k not in ("input_ids", "attention_mask")}
    [image] = adapter_for(model).images(call)
    return image, int((inputs["input_ids"] == model.config.image_token_id).sum())


@pytest.mark.parametrize("size", SIZES)
def test_any_resolution_grid_has_a_place_for_each_token(size: tuple[int, int]) -> None:
    image, placeholders = geometry(size, [[28, 28], [28, 56], [56, 28], [56, 56]])
    grid = image.grid
    assert len(grid) == placeholders
    assert len(image.pack(torch.zeros(image.num_tiles, SIDE**2))) == placeholders
    base = grid.view_N == 0
    assert int(base.sum()) == SIDE**2
    mosaic_rows = sorted(set(grid.row_N[(grid.view_N == 1) & ~grid.separator_N].tolist()))
    # a needle of an image unpads to rows without a single patch: newlines are all that is left
    num_rows = int(grid.separator_N.sum())
    assert mosaic_rows == (list(range(num_rows)) if size != (1, 200) else [])
    places = {
        (int(v), int(r), int(c))
        for v, r, c, s in zip(grid.view_N, grid.row_N, grid.col_N, grid.separator_N, strict=True)
        if not s
    }
    assert len(places) == len(grid) - int(grid.separator_N.sum())  # no two tokens on one place


def test_a_map_travels_through_the_geometry_of_the_features() -> None:
    """Number every mosaic patch by its place: the packed numbers are the grid, read in order."""
    image, _ = geometry((56, 56), [[56, 56]])
    column = torch.arange(2 * SIDE).repeat(2 * SIDE, 1)
    tiles = [
        (column.T * 100 + column)[r : r + SIDE, c : c + SIDE].reshape(-1)
        for r in (0, SIDE)
        for c in (0, SIDE)
    ]
    map_TP = torch.stack([torch.zeros(SIDE**2, dtype=torch.long), *tiles]).float()
    packed_N = image.pack(map_TP)
    on_mosaic = (image.grid.view_N == 1) & ~image.grid.separator_N
    expected_N = image.grid.row_N * 100 + image.grid.col_N
    assert torch.equal(packed_N[on_mosaic], expected_N[on_mosaic].float())


def test_a_mosaic_too_large_is_interpolated_like_the_features() -> None:
    image, placeholders = geometry((6 * TILE, 6 * TILE), WIDE)
    assert image.num_tiles == 37
    assert len(image.grid) == placeholders < 36 * SIDE**2
    ones_N = image.pack(torch.ones(37, SIDE**2))
    assert torch.equal(ones_N[~image.grid.separator_N], torch.ones(int((ones_N > 0).sum())))
    assert ones_N[image.grid.separator_N].abs().max() == 0


def test_several_images_are_one_tile_and_a_newline_each() -> None:
    adapter: Any = adapter_for(tiny_model("llava_onevision"))
    images = adapter.images(
        {
            "pixel_values": torch.zeros(3, 5, 3, TILE, TILE),
            "image_sizes": torch.tensor([[56, 56]] * 3),
            "batch_num_images": torch.tensor([2, 1]),
        }
    )
    assert [image.num_tiles for image in images] == [1, 1, 5]
    assert [len(image.grid) for image in images] == [17, 17, 88]
    assert images[0].grid.separator_N.tolist() == [False] * 16 + [True]
    assert images[0].pack(torch.arange(16.0)[None]).tolist() == [*range(16), 0]


def test_a_llava_image_is_one_square() -> None:
    adapter = adapter_for(tiny_model("llava"))
    images = adapter.images({"pixel_values": torch.zeros(2, 3, TILE, TILE)})
    assert [len(image.grid) for image in images] == [16, 16]
    assert images[0].grid.row_N.tolist() == [r for r in range(4) for _ in range(4)]
    assert images[0].grid.col_N.tolist() == list(range(4)) * 4
    assert adapter.num_prefix_tokens == 1


def test_rows_are_read_off_their_separators() -> None:
    separator_N = torch.tensor([False, False, True, False, False, True])
    grid = rows_with_separators(separator_N, view=3)
    assert grid.row_N.tolist() == [0, 0, -1, 1, 1, -1]
    assert grid.col_N.tolist() == [0, 1, -1, 0, 1, -1]
    assert grid.view_N.tolist() == [3] * 6


def test_raster_order() -> None:
    grid = raster(2, 3, view=0)
    assert list(zip(grid.row_N.tolist(), grid.col_N.tolist(), strict=True)) == [
        (0, 0),
        (0, 1),
        (0, 2),
        (1, 0),
        (1, 1),
        (1, 2),
    ]
