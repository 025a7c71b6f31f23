"""Qwen2.5-VL: most vision layers attend within windows of 2 x 2 tokens, the others within a frame.

The encoder puts its patches in window order; its features come back in the order of the prompt.
"""

from __future__ import annotations

import torch
from transformers import (
    BatchFeature,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessorPil,
)

from tests.families import TinyFamily
from tests.families.mrope import (
    image_options,
    images_and_videos,
    several_images,
    single_images,
    sizes_of_text,
    videos,
)
from tests.families.qwen2_vl import MARKUP, PROMPT, token_options
from tests.tiny import PATCH, tiny_tokenizer
from vflowopt_search.adapters.processors import without_video

WINDOW = 2 * 2 * PATCH  # pixels: two tokens of two patches


def _config() -> Qwen2_5_VLConfig:
    vision = {
        "depth": 4,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 4,
        "patch_size": PATCH,
        "out_hidden_size": 32,
        "window_size": WINDOW,
        "fullatt_block_indexes": [1, 2],
    }
    return Qwen2_5_VLConfig(
        text_config=sizes_of_text(MARKUP), vision_config=vision, **token_options()
    )


def _processor() -> ProcessorMixin:
    return without_video(Qwen2_5_VLProcessor)(
        image_processor=Qwen2VLImageProcessorPil(**image_options()),
        tokenizer=tiny_tokenizer(MARKUP.special),
        chat_template=MARKUP.chat_template(),
    )


def _timed_videos(dtype: torch.dtype) -> BatchFeature:
    """Videos whose frame pairs are half a second, one second and two seconds apart."""
    batch = videos(MARKUP, _processor)(dtype)
    batch["second_per_grid_ts"] = torch.tensor([0.5, 1.0, 2.0])
    return batch


FAMILIES = [
    TinyFamily(
        name=f"qwen2_5_vl{suffix}",
        model_type="qwen2_5_vl",
        config=_config,
        inputs=inputs,
        processor=_processor,
        prompt=PROMPT,
        tweak=MARKUP.unsaid,
    )
    for suffix, inputs in (
        ("", single_images(MARKUP, _processor)),
        ("-images", several_images(MARKUP, _processor)),
        ("-video", _timed_videos),
        ("-images+video", images_and_videos(MARKUP, _processor)),
    )
]
