"""Models that benchmarks run on: the shipped one, and full-size shapes with random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessorPil,
    LlavaOnevisionProcessor,
    Qwen2Config,
    SiglipVisionConfig,
)

from tests.tiny import CHAT_TEMPLATE, IMAGE, VIDEO, VOCABULARY, noise_image, tiny_tokenizer
from vflowopt_search.adapters.loading import pixel_scale
from vflowopt_search.adapters.processors import without_video
from vflowopt_search.calibration.choice import from_dataset
from vflowopt_search.calibration.samples import CalibrationSet, Sample, fingerprint
from vflowopt_search.strategy import PixelScale
from vflowopt_search.testbed import load_model, load_processor
from vflowopt_search.testbed.data import calibration_dataset

_AutoModel: Any = AutoModelForImageTextToText


@dataclass(frozen=True)
class Subject:
    """A model, its processor and samples."""

    name: str
    model: Any
    processor: Any
    samples: CalibrationSet

    @property
    def pixels(self) -> PixelScale:
        """How the processor normalises pixels."""
        scale = pixel_scale(self.processor)
        assert scale is not None
        return scale


def testbed(count: int) -> Subject:
    """The model that is shipped, on its calibration set."""
    rows = calibration_dataset(count, 0)
    samples = from_dataset(rows, name="testbed", num_samples=count, seed=0)
    return Subject("testbed", load_model(), load_processor(), samples)


SIDE, PATCH = 384, 14
"""Of SigLIP's tiles and patches, in pixels."""


def so400m(layers: int = 26) -> SiglipVisionConfig:
    """SigLIP so400m at 384 pixels, as LLaVA-OneVision cuts it off."""
    return SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=layers,
        num_attention_heads=16,
        image_size=SIDE,
        patch_size=PATCH,
        vision_use_head=False,
    )


def onevision_config(
    vision: SiglipVisionConfig, text: Qwen2Config, pinpoints: list[list[int]]
) -> LlavaOnevisionConfig:
    """A LLaVA-OneVision of these parts, for the tiny tokenizer."""
    return LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=VOCABULARY[IMAGE],
        video_token_index=VOCABULARY[VIDEO],
        image_grid_pinpoints=pinpoints,
    )


def onevision_processor(config: Any) -> Any:
    """The processor of such a model, with the tiny tokenizer; torchvision is not needed."""
    side, patch = config.vision_config.image_size, config.vision_config.patch_size
    return without_video(LlavaOnevisionProcessor)(
        image_processor=LlavaOnevisionImageProcessorPil(
            size={"height": side, "width": side}, image_grid_pinpoints=config.image_grid_pinpoints
        ),
        tokenizer=tiny_tokenizer(),
        num_image_tokens=(side // patch) ** 2,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
        vision_aspect_ratio="anyres_max_9",
    )


def noise_samples(count: int, size: tuple[int, int]) -> CalibrationSet:
    """Questions about noise of this width and height."""
    generator = torch.Generator().manual_seed(0)
    samples = tuple(
        Sample(str(i), "What color is the cat?", (noise_image(size, generator),))
        for i in range(count)
    )
    return CalibrationSet("noise", samples, fingerprint(samples))


def half_billion_config(vision_layers: int) -> LlavaOnevisionConfig:
    """LLaVA-OneVision-0.5B's shape for square images of one tile."""
    text = Qwen2Config(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
    )
    return onevision_config(so400m(vision_layers), text, [[SIDE, SIDE]])


def onevision_half_billion(count: int, vision_layers: int = 26) -> Subject:
    """LLaVA-OneVision-0.5B's shape, random weights, fp32; square images of one tile and a base."""
    config = half_billion_config(vision_layers)
    torch.manual_seed(0)
    model = _AutoModel.from_config(config, attn_implementation="sdpa").eval()
    chosen = noise_samples(count, (SIDE, SIDE))
    name = "OneVision-0.5B shape, random weights"
    return Subject(name, model, onevision_processor(config), chosen)


SUBJECTS: dict[str, Callable[[int], Subject]] = {
    "testbed": testbed,
    "onevision-0.5b": onevision_half_billion,
}
