"""LLaVA and its likes: a map over patches goes the way of the model's own features.

The vision tower is exchanged for one that says where each patch is, and the projector for one that
says the same; so the features of the model are places, to be found again in the packed map.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import SiglipVisionConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tests.families import tiny
from vflowopt_search.adapters.registry import adapter_for
from vflowopt_search.errors import UnsupportedError
from vflowopt_search.importance.signals import ImageGeometry
from vflowopt_search.strategy import PixelScale

VARIANTS = [
    "llava-images",
    "llava-cls",
    "llava-pixtral",
    "llava_next-images",
    "llava_next_video",
    "llava_next_video-video",
    "llava_onevision",
    "llava_onevision-images",
    "llava_onevision-video",
    "mistral3",
    "video_llava-images",
    "video_llava-video",
]
SCALE = PixelScale(mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28))


class Told(nn.Module):
    """A vision tower whose features are given, (tiles, patches and CLS), one number each."""

    def __init__(self, told_TQ: Tensor, config: Any) -> None:
        super().__init__()
        self.told_TQ, self.config, self.patch_size = told_TQ, config, config.patch_size

    def forward(self, *args: Any, **kwargs: Any) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(hidden_states=(self.told_TQ[..., None],) * 5)


class Case:
    """A family's model and the arguments of its encoding call."""

    def __init__(self, variant: str, **changed: Any) -> None:
        family = tiny(variant)
        self.model: Any = family.model()
        for name, value in changed.items():
            setattr(self.model.config.vision_config, name, value)
        self.adapter = adapter_for(self.model)
        inputs = family.inputs(torch.float32)
        self.ids = inputs["input_ids"]
        self.call = {k: v for k, v in inputs.items() if k not in ("input_ids", "attention_mask")}
        self.is_video = "pixel_values_videos" in self.call

    @property
    def images(self) -> tuple[ImageGeometry, ...]:
        return self.geometry(self.call)

    def geometry(self, call: Mapping[str, Any]) -> tuple[ImageGeometry, ...]:
        return self.adapter.videos(call) if self.is_video else self.adapter.images(call)

    @property
    def placeholders(self) -> int:
        kind = "video" if self.is_video else "image"
        return int((self.ids == getattr(self.adapter, f"{kind}_token_id")).sum())

    def encode(self) -> Any:
        base = self.model.model
        return base.get_video_features if self.is_video else base.get_image_features

    def features(self, call: Mapping[str, Any], told_TQ: Tensor) -> Tensor:
        """What the model makes of the told features, all images together, (N,)."""
        base = self.model.model
        for name in ("vision_tower", "image_tower", "video_tower"):
            if hasattr(base, name):
                setattr(base, name, Told(told_TQ, self.model.config.vision_config))
        _only_merge(base)
        if hasattr(base, "image_newline"):
            base.image_newline = nn.Parameter(torch.tensor([torch.nan]))
        pooled = self.encode()(**call, return_dict=True, vision_feature_layer=-1).pooler_output
        return torch.cat([one.reshape(-1) for one in pooled]).detach()


def _only_merge(base: Any) -> None:
    """Leave of the projector what joins patches: the mean takes the place of learned weights."""
    projector = base.multi_modal_projector
    if not hasattr(projector, "patch_merger"):
        base.multi_modal_projector = nn.Identity()
        return
    mean = nn.Linear(4, 1, bias=False)
    mean.weight.data.fill_(0.25)
    projector.patch_merger.merging_layer = mean
    projector.norm = projector.linear_1 = projector.act = projector.linear_2 = nn.Identity()


def told(case: Case, images: tuple[ImageGeometry, ...]) -> tuple[list[Tensor], Tensor]:
    """A map (tiles, patches) per image, and the same with CLS as the tower would give it."""
    generator = torch.Generator().manual_seed(3)
    maps = [
        torch.rand(image.num_tiles, image.tile_patches, generator=generator) for image in images
    ]
    if case.model.config.vision_config.model_type == "pixtral":
        return maps, torch.cat([one.flatten() for one in maps])[None]
    told_TP = torch.cat(maps)
    cls_T1 = torch.full((len(told_TP), case.adapter.num_prefix_tokens), 1e6)
    return maps, torch.cat([cls_T1, told_TP], dim=1)


def assert_like_features(case: Case, call: Mapping[str, Any]) -> None:
    images = case.geometry(call)
    maps, told_TQ = told(case, images)
    packed_N = torch.cat([image.pack(one) for image, one in zip(images, maps, strict=True)])
    separator_N = torch.cat([image.grid.separator_N for image in images])
    features_N = case.features(call, told_TQ)
    assert torch.equal(features_N.isnan(), separator_N)
    assert packed_N.isfinite().all()
    torch.testing.assert_close(packed_N[~separator_N], features_N[~separator_N])


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_map_is_packed_like_the_features(variant: str) -> None:
    case = Case(variant)
    assert_like_features(case, case.call)


@pytest.mark.parametrize("variant", VARIANTS)
def test_features_encoded_before_are_taken_like_pixels(variant: str) -> None:
    case = Case(variant)
    inputs = tiny(variant).inputs(torch.float32)
    kind: Any = {"kind": "video"} if case.is_video and "onevision" in variant else {}
    with torch.no_grad():
        features = torch.cat(case.adapter.features(case.encode()(**case.call)))
        each = torch.split(features.flatten(0, -2), [len(image.grid) for image in case.images])
        encoded = {"video" if case.is_video else "image": case.adapter.encoded(each, **kind)}
        text = {key: inputs[key] for key in ("input_ids", "attention_mask")}
        logits = case.model(**text, mm_encoder_outputs=encoded).logits
        assert torch.equal(logits, case.model(**inputs).logits)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_placeholder_has_a_place_of_its_own(variant: str) -> None:
    case = Case(variant)
    assert sum(len(image.grid) for image in case.images) == case.placeholders
    for image in case.images:
        grid = image.grid
        places = torch.stack([grid.view_N, grid.row_N, grid.col_N], dim=1)[~grid.separator_N]
        assert len({tuple(place) for place in places.tolist()}) == len(places)
        assert (grid.row_N[grid.separator_N] == -1).all()
        assert (places >= 0).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_grey_levels_are_those_of_the_patches(variant: str) -> None:
    """One run after the other has the tiles of the images, at 7 x 7 pixels a patch."""
    case = Case(variant)
    seen: list[Tensor] = []
    tower: Any = case.adapter.vision_tower
    hook = tower.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(args[0]), with_kwargs=True
    )
    case.encode()(**case.call)
    hook.remove()
    runs = case.adapter.gray_tiles(seen, case.images, SCALE)
    assert [run.shape[1:] for run in runs for _ in run] == [
        (image.tile_patches, 49) for image in case.images for _ in range(image.num_tiles)
    ]


@pytest.mark.parametrize("variant", ["llava_onevision-video", "llava_next_video-video"])
@pytest.mark.parametrize("side", [4, 5])
def test_frames_of_an_odd_side_are_pooled_like_the_features(variant: str, side: int) -> None:
    case = Case(variant, image_size=7 * side)
    assert_like_features(case, {"pixel_values_videos": torch.zeros(2, 3, 3, 7 * side, 7 * side)})


@pytest.mark.parametrize("size", [(56, 56), (1, 200), (400, 3), (90, 31), (57, 56), (112, 112)])
@pytest.mark.parametrize("variant", ["llava_next", "llava_next_video", "llava_onevision"])
def test_any_resolution_is_packed_like_the_features(variant: str, size: tuple[int, int]) -> None:
    case = Case(variant)
    call = {"pixel_values": torch.zeros(1, 5, 3, 28, 28), "image_sizes": torch.tensor([size])}
    assert_like_features(case, call)


@pytest.mark.parametrize("variant", ["llava-pixtral", "mistral3"])
def test_images_of_any_size_are_packed_like_the_features(variant: str) -> None:
    """Sides that are no multiple of a merged patch too: what is over at the rim gives no token."""
    case = Case(variant)
    sizes = torch.tensor([[35, 49], [21, 70], [14, 14]])
    padded = torch.zeros(3, 3, 35, 70)
    assert_like_features(case, {"pixel_values": padded, "image_sizes": sizes})
    whole = {"pixel_values": torch.zeros(2, 3, 28, 42)}
    if variant == "llava-pixtral":
        assert_like_features(case, whole)


def test_a_token_of_merged_patches_lies_on_their_block() -> None:
    case = Case("mistral3")
    [image] = case.geometry({"pixel_values": torch.zeros(1, 3, 28, 42)})
    row_P, col_P = torch.arange(4).repeat_interleave(6), torch.arange(6).repeat(4)
    packed_N = image.pack((100.0 * row_P + col_P)[None])
    expected_N = 100 * (2 * image.grid.row_N + 0.5) + 2 * image.grid.col_N + 0.5
    torch.testing.assert_close(packed_N, expected_N)


def test_the_newline_stands_behind_the_whole_video() -> None:
    image = Case("llava_onevision-video").images[0]
    assert image.grid.separator_N.tolist() == [False] * 16 + [True]
    assert image.grid.view_N.tolist() == [frame for frame in range(4) for _ in range(4)] + [3]


def test_a_cls_token_stands_first_in_its_tile_and_in_a_view_of_its_own() -> None:
    image = Case("video_llava-video").images[0]
    first = torch.arange(len(image.grid)) % 17 == 0
    assert image.grid.view_N[first].tolist() == [1, 3]
    assert sorted(set(image.grid.view_N[~first].tolist())) == [0, 2]
    assert image.grid.row_N[1:17].tolist() == [row for row in range(4) for _ in range(4)]


def test_a_cls_token_sees_a_single_grey_level() -> None:
    case = Case("llava-cls")
    [gray_TPX] = case.adapter.gray_tiles([case.call["pixel_values"]], case.images, SCALE)
    assert gray_TPX.shape[:2] == (3, 17)
    assert (gray_TPX[:, 0] == gray_TPX[:, 0, :1]).all()
    assert (gray_TPX[:, 1:].float().std(-1) > 0).all()


def test_padding_of_a_batch_has_no_grey_levels() -> None:
    case = Case("llava-pixtral")
    images = case.images
    together = case.adapter.gray_tiles([case.call["pixel_values"]], images, SCALE)
    for image, own, gray_TPX in zip(images, case.call["pixel_values"], together, strict=True):
        sizes: Any = image
        alone_CHW = own[:, : sizes.height, : sizes.width]
        [expected_TPX] = case.adapter.gray_tiles([alone_CHW[None]], [image], SCALE)
        assert torch.equal(gray_TPX, expected_TPX)


@pytest.mark.parametrize(
    ("variant", "selects"),
    [("llava-pixtral", "default"), ("llava_next", "full"), ("llava_onevision", "default")],
)
def test_features_that_are_no_patches_are_refused(variant: str, selects: str) -> None:
    model = tiny(variant).model()
    model.config.vision_feature_select_strategy = selects
    with pytest.raises(UnsupportedError, match=f"selects '{selects}' features"):
        adapter_for(model)


@pytest.mark.parametrize("variant", ["llava", "llava_next", "llava_onevision", "video_llava"])
def test_a_call_that_selects_otherwise_is_refused(variant: str) -> None:
    case = Case(variant)
    own = case.model.config.vision_feature_select_strategy
    other = {"default": "full", "full": "default"}[own]
    case.geometry(case.call | {"vision_feature_select_strategy": own})
    with pytest.raises(UnsupportedError, match="leave the argument out"):
        case.geometry(case.call | {"vision_feature_select_strategy": other})


def test_a_video_llava_without_cls_tokens_is_refused() -> None:
    case = Case("video_llava")
    case.model.config.vision_config = SiglipVisionConfig()
    with pytest.raises(UnsupportedError, match="siglip_vision_model towers"):
        case.adapter.check()


@pytest.mark.parametrize("kind", ["image", "video"])
def test_both_towers_of_video_llava_are_watched_and_left_alone(kind: str) -> None:
    case = Case("video_llava-video" if kind == "video" else "video_llava")
    modules = [m for m in case.model.modules() if type(m).__name__ == "CLIPAttention"]
    for module in modules:
        module.config = copy(module.config)
    configs = [module.config for module in modules]
    adapter = adapter_for(case.model)
    tower: Any = adapter.vision_tower
    attention: Any = adapter.vision_attentions[1]
    seen: list[int] = []
    hook = tower.register_forward_pre_hook(
        lambda *call: seen.append(len(call[1][0])), with_kwargs=True
    )
    original, attention.config = attention.config, copy(attention.config)
    assert sum(m.config is not c for m, c in zip(modules, configs, strict=True)) == 2
    attention.config = original
    case.encode()(**case.call)
    hook.remove()
    case.encode()(**case.call)
    assert seen == [3 if kind == "image" else 8]
    assert all(m.config is c for m, c in zip(modules, configs, strict=True))
