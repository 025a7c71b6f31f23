"""`llava_next`: CLIP tiles, a base view and a mosaic whose rows end in a newline token."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from transformers import (
    BatchFeature,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    ProcessorMixin,
)

from tests.families import TinyFamily, noise_images, ragged
from tests.families.llava import CLIP_SIZES, PROMPT, ROWS, prompts
from tests.tiny import (
    CHAT_TEMPLATE,
    IMAGE,
    MEAN,
    PATCH,
    STD,
    TILE,
    VOCABULARY,
    text_sizes,
    tiny_tokenizer,
)

# without {28, 28} every image has a mosaic of two tiles at least
PINPOINTS = [[TILE, 2 * TILE], [2 * TILE, TILE], [2 * TILE, 2 * TILE]]
SIZES = ((56, 56), (80, 30), (28, 40), (19, 60))

_Processor: Any = LlavaNextProcessor


def image_processor() -> LlavaNextImageProcessorPil:
    """Tiles of 28 pixels on the pinpoints of this family."""
    return LlavaNextImageProcessorPil(
        size={"shortest_edge": TILE},
        crop_size={"height": TILE, "width": TILE},
        image_grid_pinpoints=PINPOINTS,
        image_mean=MEAN,
        image_std=STD,
    )


def _config() -> LlavaNextConfig:
    return LlavaNextConfig(
        vision_config=CLIPVisionConfig(**CLIP_SIZES),
        text_config=LlamaConfig(**text_sizes()),
        image_token_index=VOCABULARY[IMAGE],
        image_grid_pinpoints=PINPOINTS,
    )


def _processor() -> ProcessorMixin:
    processor: ProcessorMixin = _Processor(
        image_processor=image_processor(),
        tokenizer=tiny_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    return processor


def image_rows(
    processor: ProcessorMixin, counts: Sequence[int], dtype: torch.dtype
) -> BatchFeature:
    """Prompts of so many any-resolution images each."""
    images = iter(noise_images(SIZES))
    rows = [[next(images) for _ in range(count)] for count in counts]
    return ragged(processor, prompts(PROMPT, IMAGE, counts), rows).to(dtype)


def _inputs(dtype: torch.dtype, counts: Sequence[int]) -> BatchFeature:
    return image_rows(_processor(), counts, dtype)


FAMILIES = [
    TinyFamily(
        name=name,
        model_type="llava_next",
        config=_config,
        processor=_processor,
        prompt=PROMPT,
        inputs=partial(_inputs, counts=counts),
    )
    for name, counts in (("llava_next", (1, 1, 1)), ("llava_next-images", ROWS))
]
