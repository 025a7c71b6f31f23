"""Encoders that take all images' patches in one sequence: which patch feeds which token, and where.

Shape suffixes: T = tiles, P = patches of a tile, S = patches of all images, N = visual tokens,
X = pixels of a patch.
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.adapters.test_geometry_qwen import pack_all, painted
from tests.families import tiny
from tests.families.packed_patches import paddle_processor
from tests.tiny import PATCH
from vflowopt_search.adapters.loading import pixel_scale
from vflowopt_search.adapters.registry import ADAPTERS, adapter_for

MINE = sorted(
    name for name, served in ADAPTERS.items() if served.__module__.endswith("packed_patches")
)
every_type = pytest.mark.parametrize("model_type", MINE)


def encoding(model: Any, batch: Any) -> dict[str, Any]:
    """What of a batch is for `get_image_features`."""
    names = inspect.signature(model.model.get_image_features).parameters
    return {name: batch[name] for name in names if name in batch}


@every_type
def test_a_token_is_the_mean_of_the_patches_that_feed_it(model_type: str) -> None:
    """Without its attention layers, the encoder shows which pixels each token is made of."""
    model: Any = tiny(model_type).model()
    adapter = adapter_for(model)
    call = encoding(model, tiny(model_type).inputs(torch.float32))
    for module in adapter.vision_tower.modules():
        if isinstance(getattr(module, "layers", None), nn.ModuleList):
            module.layers = nn.ModuleList()
    pixels_SX = call["pixel_values"].requires_grad_()
    images = adapter.images(call)
    features = torch.cat(list(model.model.get_image_features(**call).pooler_output))
    fed_NS = torch.stack(
        [
            torch.autograd.grad(token.sum(), pixels_SX, retain_graph=True)[0].flatten(1).any(1)
            for token in features
        ]
    )
    packed_SN = torch.stack([pack_all(images, patch_S) for patch_S in torch.eye(len(pixels_SX))])
    assert torch.equal(packed_SN.T, fed_NS / 4)
    separator_N = torch.cat([image.grid.separator_N for image in images])
    assert torch.equal(separator_N, ~fed_NS.any(1))


@every_type
def test_grey_levels_and_grid_agree_with_the_picture(model_type: str) -> None:
    """Paint each token's place as its grey level: packed, the levels are the grid."""
    family = tiny(model_type)
    processor: Any = (family.processor or paddle_processor)()
    model: Any = family.model()
    adapter = adapter_for(model)
    sizes = [(4, 5), (6, 3), (5, 4), (4, 4)]  # rows and columns of tokens
    pictures = [painted(rows, cols) for rows, cols in sizes]
    call = encoding(model, processor.image_processor(images=pictures, return_tensors="pt"))
    scale = pixel_scale(processor)
    assert scale is not None
    seen: list[Tensor] = []
    adapter.vision_tower.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(args[0] if args else kwargs["pixel_values"]),
        with_kwargs=True,
    )
    with torch.no_grad():
        model.model.get_image_features(**call)
    images = adapter.images(call)
    runs = adapter.gray_tiles(seen, images, scale)
    for image, gray_TPX, (rows, cols) in zip(images, runs, sizes, strict=True):
        assert gray_TPX.dtype == torch.uint8
        assert gray_TPX.shape == (1, 4 * rows * cols, 49)
        assert torch.equal(gray_TPX, gray_TPX[..., :1].expand_as(gray_TPX))
        grid = image.grid
        packed_N = image.pack(gray_TPX[..., 0].float())[~grid.separator_N]
        place_N = (10 * grid.row_N + grid.col_N)[~grid.separator_N]
        assert torch.equal(packed_N, place_N.float())
        assert (int(grid.row_N.max()), int(grid.col_N.max())) == (rows - 1, cols - 1)


@every_type
def test_the_colours_of_a_pixel_belong_together(model_type: str) -> None:
    """A picture of one colour is of one grey level, which is not that of a channel."""
    family = tiny(model_type)
    processor: Any = (family.processor or paddle_processor)()
    model: Any = family.model()
    adapter = adapter_for(model)
    red = Image.new("RGB", (8 * PATCH, 8 * PATCH), (200, 0, 0))
    call = encoding(model, processor.image_processor(images=[red], return_tensors="pt"))
    scale = pixel_scale(processor)
    assert scale is not None
    pixels = call["pixel_values"]
    tower = pixels[None] if model_type == "paddleocr_vl" else pixels
    [gray_TPX] = adapter.gray_tiles([tower], adapter.images(call), scale)
    assert torch.equal(gray_TPX, torch.full_like(gray_TPX, 60))  # 0.299 x 200
