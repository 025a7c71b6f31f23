"""A checkpoint's processor, whole or for images only, on a machine without torchvision."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import (
    InternVLProcessor,
    LlamaConfig,
    LlavaOnevisionProcessor,
    LlavaProcessor,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
    VideoLlavaProcessor,
)

from tests.tiny import (
    FAMILIES,
    MEAN,
    STD,
    TILE,
    tiny_config,
    tiny_model,
    tiny_processor,
    tiny_tokenizer,
)
from vflowopt_search.adapters import loading
from vflowopt_search.adapters.loading import load_processor, pixel_scale
from vflowopt_search.adapters.processors import without_video
from vflowopt_search.errors import ModelError, UnsupportedError
from vflowopt_search.strategy import PixelScale

every_family = pytest.mark.parametrize("family", FAMILIES)


def same_text_and_pixels(one: ProcessorMixin, other: ProcessorMixin) -> None:
    image = Image.linear_gradient("L").resize((70, 40)).convert("RGB")
    inputs = [
        processor(images=[[image]], text=[prompt(processor)], return_tensors="pt")
        for processor in (one, other)
    ]
    assert set(inputs[0]) == set(inputs[1])
    for name, tensor in inputs[0].items():
        torch.testing.assert_close(inputs[1][name], tensor, rtol=0, atol=0)


def prompt(processor: Any) -> str:
    content = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
    text: str = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    return text


@every_family
def test_loads_a_whole_processor(family: str, checkpoints: dict[str, Path]) -> None:
    processor = load_processor(checkpoints[family])
    expected = {"llava": LlavaProcessor, "llava_onevision": LlavaOnevisionProcessor}[family]
    assert isinstance(processor, expected)
    assert type(processor).__name__ == expected.__name__
    assert processor.tokenizer.padding_side == "left"
    same_text_and_pixels(tiny_processor(family), processor)


def test_keeps_what_the_own_class_sets(checkpoints: dict[str, Path]) -> None:
    folder = checkpoints["llava_onevision"]
    processor: Any = load_processor(folder)
    declared = json.loads((folder / "processor_config.json").read_text())
    declared.pop("processor_class")
    assert {name: getattr(processor, name) for name in declared} == declared
    assert processor.image_token_id == processor.tokenizer.convert_tokens_to_ids("<image>")
    assert not hasattr(processor, "video_processor")


@every_family
def test_a_processor_survives_saving(family: str, tmp_path: Path) -> None:
    # one file for all parts, as transformers writes it today
    tiny_model(family).config.save_pretrained(tmp_path)
    tiny_processor(family).save_pretrained(tmp_path)
    loaded: Any = load_processor(tmp_path)
    copied = copy.deepcopy(loaded)
    assert copied.tokenizer is not loaded.tokenizer
    same_text_and_pixels(tiny_processor(family), loaded)
    same_text_and_pixels(tiny_processor(family), copied)


def test_the_saved_video_part_is_left_out(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    # what save_pretrained writes where torchvision is present
    tiny_model("llava_onevision").config.save_pretrained(tmp_path)
    tiny_processor("llava_onevision").save_pretrained(tmp_path)
    file = tmp_path / "processor_config.json"
    video = {"video_processor_type": "LlavaOnevisionVideoProcessor", "do_resize": True}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"video_processor": video}))
    loaded = load_processor(tmp_path)
    assert isinstance(loaded, LlavaOnevisionProcessor) and not hasattr(loaded, "video_processor")
    same_text_and_pixels(tiny_processor("llava_onevision"), loaded)


def test_the_model_type_names_the_processor(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    # old checkpoints name no processor class: its own attributes then have their defaults
    for file in checkpoints["llava_onevision"].iterdir():
        if file.name not in ("processor_config.json", "model.safetensors"):
            text = file.read_text().replace(
                '"processor_class": "LlavaOnevisionProcessor"', '"x": 0'
            )
            (tmp_path / file.name).write_text(text)
    assert isinstance(load_processor(tmp_path), LlavaOnevisionProcessor)


def test_the_files_name_the_processor_before_the_model_type(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    for file in checkpoints["llava_onevision"].iterdir():
        if file.name != "model.safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    tiny_config("llava").save_pretrained(tmp_path)
    assert isinstance(load_processor(tmp_path), LlavaOnevisionProcessor)


def test_a_tokenizer_alone_is_never_a_processor(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    class OnlyTokenizer:
        @staticmethod
        def from_pretrained(*args: Any, **kwargs: Any) -> PreTrainedTokenizerBase:
            return tiny_tokenizer()

    monkeypatch.setattr(loading, "_AutoProcessor", OnlyTokenizer)
    assert isinstance(load_processor(checkpoints["llava"]), LlavaProcessor)


def test_a_text_model_has_no_processor(tmp_path: Path) -> None:
    LlamaConfig().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="names no processor that transformers knows"):
        load_processor(tmp_path)


def test_a_processor_that_needs_code_of_its_own(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    for file in checkpoints["llava"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    own = {"processor_class": "Own", "auto_map": {"AutoProcessor": "own.Own"}}
    (tmp_path / "processor_config.json").write_text(json.dumps(own))
    (tmp_path / "own.py").write_text("raise SystemExit('this code was run')")
    # transformers knows the model type, so its own class stands in for the foreign one
    assert isinstance(load_processor(tmp_path), LlavaProcessor)


def test_a_video_is_refused() -> None:
    processor: Any = tiny_processor("llava_onevision")
    frames = [Image.new("RGB", (TILE, TILE))] * 2
    with pytest.raises(UnsupportedError, match="takes images only; install torchvision"):
        processor(text=["<video> what is this"], videos=[frames], return_tensors="pt")
    with pytest.raises(UnsupportedError, match="takes images only"):
        processor(None, ["<video> what is this"], [frames])


@pytest.mark.parametrize(
    "own_class", [Qwen2VLProcessor, Qwen2_5_VLProcessor, InternVLProcessor, VideoLlavaProcessor]
)
def test_any_class_with_a_video_slot_can_do_without(own_class: type[ProcessorMixin]) -> None:
    tokenizer: Any = tiny_tokenizer()
    tokens = ("start_image", "end_image", "context_image", "video")
    for name in tokens:  # InternVL asks its tokenizer for them
        setattr(tokenizer, f"{name}_token", "<image>")
        setattr(tokenizer, f"{name}_token_id", 4)
    image_processor = Qwen2VLImageProcessorPil()
    build: Any = without_video(own_class)
    processor: Any = build(image_processor=image_processor, tokenizer=tokenizer, chat_template="x")
    assert isinstance(build, type) and issubclass(build, own_class)
    assert processor.image_processor is image_processor
    assert processor.tokenizer is tokenizer
    assert processor.chat_template == "x"
    assert sorted(processor.get_attributes()) == ["image_processor", "tokenizer"]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"do_normalize": False},
        {"rescale_factor": 1 / 127.5},
        {"rescale_factor": 1 / 127.5, "do_normalize": False},
        {"do_rescale": False},
        {"image_mean": 0.5, "image_std": 0.25},
    ],
)
def test_pixel_scale_gives_the_pixels_back(changes: dict[str, Any]) -> None:
    processor: Any = tiny_processor("llava")
    for name, value in changes.items():
        setattr(processor.image_processor, name, value)
    scale = pixel_scale(processor)
    assert scale is not None
    image = Image.linear_gradient("L").resize((TILE, TILE)).convert("RGB")
    seen_CHW = processor.image_processor(image, return_tensors="pt")["pixel_values"][0].double()
    mean_C11 = torch.tensor(scale.mean, dtype=torch.float64)[:, None, None]
    std_C11 = torch.tensor(scale.std, dtype=torch.float64)[:, None, None]
    pixels_CHW = (seen_CHW * std_C11 + mean_C11) * 255
    expected_HW = torch.tensor(list(image.convert("L").get_flattened_data())).reshape(TILE, TILE)
    torch.testing.assert_close(
        pixels_CHW, expected_HW.double().expand(3, -1, -1), rtol=0, atol=1e-3
    )


def test_pixel_scale_of_the_tiny_processors() -> None:
    scale = PixelScale(mean=tuple(MEAN), std=tuple(STD))
    assert [pixel_scale(tiny_processor(family)) for family in FAMILIES] == [scale, scale]


def test_pixel_scale_unknown() -> None:
    processor: Any = tiny_processor("llava")
    processor.image_processor.image_mean = None
    assert pixel_scale(processor) is None
    del processor.image_processor
    assert pixel_scale(processor) is None
