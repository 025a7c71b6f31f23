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


SIDE = 384
"""Of the images at the size of a real model, in pixels."""


def half_billion_config(side: int, vision_layers: int) -> LlavaOnevisionConfig:
    """LLaVA-OneVision-0.5B's shape for square images of one tile."""
    vision = SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=vision_layers,
        num_attention_heads=16,
        image_size=side,
        patch_size=14,
        vision_use_head=False,
    )
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
    return LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=VOCABULARY[IMAGE],
        video_token_index=VOCABULARY[VIDEO],
        image_grid_pinpoints=[[side, side]],
    )


def onevision_half_billion(count: int, vision_layers: int = 26) -> Subject:
    """LLaVA-OneVision-0.5B's shape, random weights, fp32; square images of one tile and a base."""
    config = half_billion_config(SIDE, vision_layers)
    torch.manual_seed(0)
    model = _AutoModel.from_config(config, attn_implementation="sdpa").eval()
    processor = without_video(LlavaOnevisionProcessor)(
        image_processor=LlavaOnevisionImageProcessorPil(
            size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=[[SIDE, SIDE]]
        ),
        tokenizer=tiny_tokenizer(),
        num_image_tokens=(SIDE // 14) ** 2,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
        vision_aspect_ratio="anyres_max_9",
    )
    generator = torch.Generator().manual_seed(0)
    samples = tuple(
        Sample(str(i), "What color is the cat?", (noise_image((SIDE, SIDE), generator),))
        for i in range(count)
    )
    chosen = CalibrationSet("noise", samples, fingerprint(samples))
    return Subject("OneVision-0.5B shape, random weights", model, processor, chosen)


SUBJECTS: dict[str, Callable[[int], Subject]] = {
    "testbed": testbed,
    "onevision-0.5b": onevision_half_billion,
}
