"""Patches of the Qwen-VL and GLM-V families: which token they feed, where it lies, who sees whom.

Shape suffixes: T = tiles, P = patches of a tile, S = patches of all images, N = visual tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.families import tiny
from tests.families.mrope import PAIR
from tests.tiny import PATCH
from vflowopt_search.adapters.loading import pixel_scale
from vflowopt_search.adapters.qwen_vl import Qwen3VLAdapter, Qwen25VLAdapter
from vflowopt_search.adapters.registry import ADAPTERS, adapter_for
from vflowopt_search.importance.signals import ImageGeometry

TOKEN = 2 * PATCH  # pixels along one side of a token
FILES = ("qwen_vl", "glm4v")  # the adapters of other encoders with such patches differ in more
MINE = sorted(name for name, served in ADAPTERS.items() if served.__module__.endswith(FILES))

every_type = pytest.mark.parametrize("model_type", MINE)
every_processor = pytest.mark.parametrize(
    "model_type", [name for name in MINE if tiny(name).processor is not None]
)


class Names(NamedTuple):
    """What belongs to a kind of input: pixels, grid, and the method that encodes them."""

    pixels: str
    grid: str
    method: str


KINDS = {
    "image": Names("pixel_values", "image_grid_thw", "get_image_features"),
    "video": Names("pixel_values_videos", "video_grid_thw", "get_video_features"),
}


GRIDS = {"image": [[1, 6, 10], [1, 8, 4]], "video": [[2, 6, 6], [3, 4, 10]]}
every_kind = pytest.mark.parametrize("kind", KINDS)


def noise(kind: str) -> dict[str, Tensor]:
    """Arguments of an encoding: noise in place of normalised pixels."""
    grid_I3 = torch.tensor(GRIDS[kind])
    generator = torch.Generator().manual_seed(3)
    num_patches = int(grid_I3.prod(1).sum())
    pixels_SX = torch.randn(num_patches, 3 * PAIR * PATCH**2, generator=generator)
    return {KINDS[kind].pixels: pixels_SX, KINDS[kind].grid: grid_I3}


def geometries(adapter: Any, kind: str, call: Mapping[str, Any]) -> tuple[ImageGeometry, ...]:
    found: tuple[ImageGeometry, ...] = (
        adapter.images(call) if kind == "image" else adapter.videos(call)
    )
    return found


@every_type
@every_kind
def test_a_token_is_the_mean_of_the_patches_that_feed_it(model_type: str, kind: str) -> None:
    """Without its attention layers, the encoder shows which pixels each token is made of."""
    model: Any = tiny(model_type).model()
    call = noise(kind)
    images = geometries(adapter_for(model), kind, call)
    model.model.visual.blocks = nn.ModuleList()
    pixels_SX = call[KINDS[kind].pixels].requires_grad_()
    features = torch.cat(list(getattr(model.model, KINDS[kind].method)(**call).pooler_output))
    fed_NS = torch.stack(
        [
            torch.autograd.grad(token.sum(), pixels_SX, retain_graph=True)[0].abs().sum(1) > 0
            for token in features
        ]
    )
    packed_SN = torch.stack([pack_all(images, patch_S) for patch_S in torch.eye(len(pixels_SX))])
    assert torch.equal(packed_SN.T, fed_NS / 4)


def pack_all(images: tuple[ImageGeometry, ...], map_S: Tensor) -> Tensor:
    """A map over the patches of all images, packed image by image."""
    parts = torch.split(map_S, [image.num_tiles * image.tile_patches for image in images])
    return torch.cat(
        [
            image.pack(part.view(image.num_tiles, image.tile_patches))
            for image, part in zip(images, parts, strict=True)
        ]
    )


@every_processor
def test_grey_levels_and_grid_agree_with_the_picture(model_type: str) -> None:
    """Paint each token's place as its grey level: packed, the levels are the grid."""
    family = tiny(model_type)
    assert family.processor is not None
    processor: Any = family.processor()
    adapter = adapter_for(family.model())
    sizes = [(4, 5), (6, 3), (5, 4), (4, 4)]  # rows and columns of tokens
    pictures = [painted(rows, cols) for rows, cols in sizes]
    batch = processor.image_processor(images=pictures, return_tensors="pt")
    scale = pixel_scale(processor)
    assert scale is not None
    images = adapter.images(batch)
    runs = adapter.gray_tiles([batch["pixel_values"]], images, scale)
    assert [tuple(run.shape) for run in runs] == [
        (1, 80, 98),
        (1, 72, 98),
        (1, 80, 98),
        (1, 64, 98),
    ]
    for image, gray_TPX, (rows, cols) in zip(images, runs, sizes, strict=True):
        assert gray_TPX.dtype == torch.uint8
        assert torch.equal(gray_TPX, gray_TPX[..., :1].expand_as(gray_TPX))
        packed_N = image.pack(gray_TPX[..., 0].float())
        assert torch.equal(packed_N, (10 * image.grid.row_N + image.grid.col_N).float())
        assert (int(image.grid.row_N.max()), int(image.grid.col_N.max())) == (rows - 1, cols - 1)


def painted(rows: int, cols: int, offset: int = 0) -> Image.Image:
    """A picture of rows x cols tokens whose grey level is 10 x row + column (+ offset)."""
    place = 10 * torch.arange(rows)[:, None] + torch.arange(cols) + offset
    pixels = place.repeat_interleave(TOKEN, 0).repeat_interleave(TOKEN, 1).to(torch.uint8)
    return Image.fromarray(pixels.numpy()).convert("RGB")


@every_processor
def test_a_frame_is_a_tile_and_a_view(model_type: str) -> None:
    family = tiny(model_type)
    assert family.processor is not None
    processor: Any = family.processor()
    adapter = adapter_for(family.model())
    scale = pixel_scale(processor)
    assert scale is not None
    frames = [painted(4, 4, offset=60 * frame) for frame in range(4)]
    flat = processor.image_processor(images=frames, return_tensors="pt")["pixel_values"]
    one_FPCX = flat.view(4, 64, 3, PAIR, -1)[:, :, :, 0]
    pairs = torch.stack([one_FPCX[0::2], one_FPCX[1::2]], dim=3)  # frame pair, patch, C, frame, X
    [video] = adapter.videos({"video_grid_thw": torch.tensor([[2, 8, 8]])})
    [gray_TPX] = adapter.gray_tiles([pairs.reshape(128, -1)], [video], scale)
    assert (video.num_tiles, video.tile_patches, len(video.grid)) == (2, 64, 32)
    assert video.grid.view_N.tolist() == [0] * 16 + [1] * 16
    assert not video.grid.separator_N.any()
    place_N = 10 * video.grid.row_N + video.grid.col_N + 120 * video.grid.view_N
    for frame, level_TP in enumerate(gray_TPX[..., :: PATCH**2].unbind(2)):
        assert torch.equal(video.pack(level_TP.float()), (place_N + 60 * frame).float())


@every_type
@every_kind
def test_the_order_of_patches_inside_the_encoder(model_type: str, kind: str) -> None:
    """What the encoder's first layer is given, put in order, is what the patch embedding gave."""
    model: Any = tiny(model_type).model()
    adapter = adapter_for(model)
    visual = model.model.visual
    seen: dict[str, Tensor] = {}
    visual.blocks[0].register_forward_pre_hook(lambda _, args: seen.update(entered=args[0]))
    embedding = getattr(visual, "post_conv_layernorm", visual.patch_embed)
    embedding.register_forward_hook(lambda *call: seen.update(embedded=call[-1]))
    for name, parameter in visual.named_parameters():
        if "pos_embed" in name or "position_embedding" in name:  # added in between: take it away
            parameter.data.zero_()
    call = noise(kind)
    with torch.no_grad():
        getattr(model.model, KINDS[kind].method)(**call)
    order_S = adapter.patch_order(geometries(adapter, kind, call), call)
    assert (order_S is not None) == isinstance(adapter, Qwen25VLAdapter)
    assert torch.equal(seen["entered"], seen["embedded"]) == (order_S is None)
    if order_S is not None:
        assert torch.equal(seen["entered"][order_S], seen["embedded"])


def test_only_layers_that_see_the_whole_image_score_importance() -> None:
    assert adapter_for(tiny("qwen2_5_vl").model()).vision_layers == (1, 2)
    assert adapter_for(tiny("qwen2_vl").model()).vision_layers == (0, 1, 2, 3)


@pytest.mark.parametrize("variant", ["qwen3_vl-images+video", "qwen3_vl_moe"])
def test_deepstack_features_survive_being_kept(variant: str) -> None:
    family = tiny(variant)
    model: Any = family.model()
    adapter: Any = adapter_for(model)
    assert isinstance(adapter, Qwen3VLAdapter)
    batch = family.inputs(torch.float32)
    kept: dict[str, Any] = {}
    with torch.no_grad():
        expected = model(**batch).logits
        for kind, names in KINDS.items():
            if names.pixels not in batch:
                continue
            encode = getattr(model.model, names.method)
            output = encode(batch[names.pixels], batch[names.grid])
            features = adapter.features(output)
            assert [tuple(one.shape[1:]) for one in features] == [(4, 32)] * len(features)
            kept[kind] = adapter.encoded(features)
        rest = {name: value for name, value in batch.items() if not name.startswith("pixel")}
        assert torch.equal(model(**rest, mm_encoder_outputs=kept).logits, expected)
