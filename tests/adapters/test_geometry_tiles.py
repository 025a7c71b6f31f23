"""Tiled and pooled images: every token knows its patches, every patch its attention key."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.llama4 import modeling_llama4

from tests.families import TinyFamily, tiny
from vflowopt_search.adapters.base import Adapter
from vflowopt_search.adapters.loading import load_model, load_processor
from vflowopt_search.adapters.registry import adapter_for
from vflowopt_search.errors import ModelError, UnsupportedError
from vflowopt_search.pruning.probe import attention_probe

_llama4: Any = modeling_llama4  # transformers annotates it in part only
VARIANTS = [
    "internvl",
    "internvl-images",
    "internvl-video",
    "idefics3",
    "idefics3-images",
    "smolvlm",
    "smolvlm-images",
    "gemma3",
    "gemma3-images",
    "gemma3-crops",
    "paligemma",
    "paligemma-images",
    "llama4",
    "llama4-images",
]
ONE_EACH = ["internvl", "idefics3", "smolvlm", "gemma3", "paligemma", "llama4"]
PATCH = 7  # pixels, in all of them


def vision_call(family: TinyFamily) -> dict[str, Any]:
    """What of a variant's prompts goes to `get_image_features`."""
    inputs = family.inputs(torch.float32)
    return {name: value for name, value in inputs.items() if name.startswith("pixel")}


def features(adapter: Adapter, call: Mapping[str, Any]) -> Tensor:
    """Features of all tokens of all images, (N, D), as they come."""
    output = adapter.base.get_image_features(**call, return_dict=True)
    parts = output.get("pooler_output")
    parts = output.last_hidden_state if parts is None else parts
    return torch.cat([part.flatten(0, -2) for part in parts])


def without_vision_attention(model: PreTrainedModel) -> None:
    """No patch learns of another one any more."""
    for attention in adapter_for(model).vision_attentions:
        for name, part in attention.named_parameters():
            if name.startswith(("out_proj", "o_proj", "projection_layer")):
                part.data.zero_()


def with_patch_changed(pixels: Tensor, tile: int, row: int, column: int) -> Tensor:
    """Other noise in one patch of one tile that is no padding."""
    changed = pixels.clone()
    tiles_TCHW = changed.view(-1, *changed.shape[-3:])
    real = (tiles_TCHW != 0).flatten(1).any(-1).nonzero()[tile]
    place = (slice(row * PATCH, (row + 1) * PATCH), slice(column * PATCH, (column + 1) * PATCH))
    tiles_TCHW[(int(real), slice(None), *place)] = torch.randn(
        changed.shape[-3], PATCH, PATCH, generator=torch.Generator().manual_seed(0)
    )
    return changed


@pytest.mark.parametrize("name", VARIANTS)
def test_every_placeholder_is_a_token_of_some_image(name: str) -> None:
    family = tiny(name)
    adapter, inputs = adapter_for(family.model()), family.inputs(torch.float32)
    images = adapter.images(vision_call(family))
    placeholders = int((inputs["input_ids"] == adapter.image_token_id).sum())
    assert sum(len(image.grid) for image in images) == placeholders
    assert len(features(adapter, vision_call(family))) == placeholders
    for image in images:
        map_TP = torch.ones(image.num_tiles, image.tile_patches)
        assert torch.equal(image.pack(map_TP), torch.ones(len(image.grid)))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("place", [(0, 0), (2, 1), (4, 3)])
def test_a_patch_reaches_the_tokens_that_pack_says(name: str, place: tuple[int, int]) -> None:
    family = tiny(name)
    model, call = family.model(), vision_call(family)
    without_vision_attention(model)
    adapter = adapter_for(model)
    images = adapter.images(call)
    pixels = call["pixel_values"]
    tile = len(images) - 1
    changed = call | {"pixel_values": with_patch_changed(pixels, tile, *place)}
    with torch.no_grad():
        moved_N = (features(adapter, call) != features(adapter, changed)).any(-1)
    side = round(images[tile].tile_patches ** 0.5)
    map_TP = torch.zeros(1, side**2)
    map_TP[0, place[0] * side + place[1]] = 1
    before = sum(len(image.grid) for image in images[:tile])
    assert not moved_N[:before].any()
    assert torch.equal(moved_N[before:], images[tile].pack(map_TP) > 0)
    [token] = (moved_N[before:]).nonzero().flatten().tolist()
    block = side // round(len(images[tile].grid) ** 0.5)
    assert images[tile].grid.row_N[token] == place[0] // block
    assert images[tile].grid.col_N[token] == place[1] // block


@pytest.mark.parametrize("name", VARIANTS)
def test_a_patch_is_the_attention_key_at_its_place(name: str) -> None:
    """Before any layer has mixed them, a changed patch changes its own key and no other."""
    family = tiny(name)
    adapter, call = adapter_for(family.model()), vision_call(family)
    tile, row, column = len(adapter.images(call)) - 1, 2, 1
    changed = call | {"pixel_values": with_patch_changed(call["pixel_values"], tile, row, column)}
    keys: list[Tensor] = []
    with (
        torch.no_grad(),
        attention_probe(adapter.vision_attentions[0], lambda query, key, scale: keys.append(key)),
    ):
        features(adapter, call)
        features(adapter, changed)
    before, after = keys
    image = adapter.images(call)[tile]
    extra = adapter.num_prefix_tokens + adapter.num_suffix_tokens
    assert before.shape[2] == image.tile_patches + extra
    moved = (before != after).any(-1).any(1).nonzero()
    side = round(image.tile_patches**0.5)
    assert moved.tolist() == [[tile, adapter.num_prefix_tokens + row * side + column]]


def test_numbers_are_pooled_as_the_models_pool_them() -> None:
    map_TP = torch.arange(64.0)[None]
    line, square = map_TP[..., None], map_TP.view(1, 8, 8, 1)
    models = {name: tiny(name).model() for name in ONE_EACH}
    adapters = {name: adapter_for(model) for name, model in models.items()}
    packed = {
        name: adapter.images(vision_call(tiny(name)))[0].pack(
            map_TP if name != "paligemma" else map_TP[:, :25]
        )
        for name, adapter in adapters.items()
    }
    pool = adapters["gemma3"].base.multi_modal_projector.avg_pool
    expected = {
        "internvl": adapters["internvl"].base.pixel_shuffle(square).mean(-1),
        "idefics3": adapters["idefics3"].base.connector.pixel_shuffle(line, 2).mean(-1),
        "smolvlm": adapters["smolvlm"].base.connector.pixel_shuffle(line, 2).mean(-1),
        "gemma3": pool(map_TP.view(1, 1, 8, 8)),
        "paligemma": map_TP[:, :25],
        "llama4": _llama4.pixel_shuffle(line, 0.5).mean(-1),
    }
    for name, value in expected.items():
        assert torch.equal(packed[name], value.flatten()), name


def test_tiles_that_are_padding_are_no_images() -> None:
    call = vision_call(tiny("idefics3"))
    assert call["pixel_values"].shape[:2] == (3, 5)
    assert len(adapter_for(tiny("idefics3").model()).images(call)) == 3 + 5 + 3


@pytest.mark.parametrize("name", ["idefics3", "smolvlm"])
def test_an_image_padded_to_the_size_of_others_is_refused(name: str) -> None:
    call = vision_call(tiny(name))
    call["pixel_attention_mask"][0, 1, :, 30:] = 0  # the rest of 8 rows: columns 5, 6 and 7
    adapter = adapter_for(tiny(name).model())
    with pytest.raises(UnsupportedError, match=r"calls 24 patches .* padding.*do_resize=True"):
        adapter.images(call)
    assert len(adapter.images({"pixel_values": call["pixel_values"]})) == 11


@pytest.mark.parametrize("name", ["internvl", "idefics3"])
def test_tiles_that_are_not_square_are_refused(name: str) -> None:
    pixels = vision_call(tiny(name))["pixel_values"][..., :28]
    with pytest.raises(UnsupportedError, match="8 x 4 patches"):
        adapter_for(tiny(name).model()).images({"pixel_values": pixels})


def test_internvl_needs_square_patches() -> None:
    model = tiny("internvl").model()
    model.config.vision_config.patch_size = (7, 14)
    with pytest.raises(UnsupportedError, match="7 x 14 pixels"):
        adapter_for(model)


def test_internvl_leaves_out_its_cls_token() -> None:
    model = tiny("internvl").model()
    model.config.vision_feature_select_strategy = "full"
    with pytest.raises(UnsupportedError, match="selects 'full' features"):
        adapter_for(model)


@pytest.mark.parametrize("name", ["idefics3", "llama4", "internvl"])
def test_stored_features_are_what_forward_wants(name: str) -> None:
    """Cut into one tensor per image and put together again, they give the same logits."""
    family = tiny(name)
    model, inputs = family.model(), family.inputs(torch.float32)
    adapter: Any = adapter_for(model)
    call = vision_call(family)
    with torch.no_grad():
        cut = adapter.features(adapter.base.get_image_features(**call, return_dict=True))
        assert [len(one) for one in cut] == [len(image.grid) for image in adapter.images(call)]
        rest = {name: value for name, value in inputs.items() if name not in call}
        encoded = model(**rest, mm_encoder_outputs={"image": adapter.encoded(cut)})
        assert torch.equal(encoded.logits, model(**inputs).logits)


def test_a_processor_that_needs_torchvision_says_so(tmp_path: Path) -> None:
    """Llama 4 has the only image processor without a twin for PIL."""
    family = tiny("llama4")
    family.model().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_processor_type": "Llama4ImageProcessor", "processor_class": "Llama4Processor"}'
    )
    with pytest.raises(ModelError, match="torchvision"):
        load_processor(tmp_path)
    assert adapter_for(load_model(tmp_path)).model_type == "llama4"
