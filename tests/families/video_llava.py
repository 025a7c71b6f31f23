"""`video_llava`: one tower for images, one for videos, whose frames keep their CLS token."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from transformers import (
    BatchFeature,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    ProcessorMixin,
    VideoLlavaConfig,
    VideoLlavaImageProcessor,
    VideoLlavaProcessor,
)

from tests.families import TinyFamily, noise_images, older_transformers, ragged
from tests.families.llava import CLIP_SIZES, PROMPT, ROWS, SIZES, prompts
from tests.families.llava_next_video import mixed_rows, video_rows
from tests.tiny import (
    CHAT_TEMPLATE,
    IMAGE,
    MEAN,
    PATCH,
    STD,
    TILE,
    TOKENS_PER_TILE,
    VIDEO,
    VOCABULARY,
    text_sizes,
    tiny_tokenizer,
)
from vflowopt_search.adapters.processors import without_video

FRAMES = 2
TOKENS = FRAMES * (1 + TOKENS_PER_TILE)


def _config() -> VideoLlavaConfig:
    return VideoLlavaConfig(
        vision_config=CLIPVisionConfig(**CLIP_SIZES),
        text_config=LlamaConfig(**text_sizes()),
        image_token_index=VOCABULARY[IMAGE],
        video_token_index=VOCABULARY[VIDEO],
        image_seq_length=TOKENS_PER_TILE,
        video_seq_length=TOKENS,
    )


def _processor() -> ProcessorMixin:
    made: Any = without_video(VideoLlavaProcessor)
    # the family's own still writes a deprecated name, pixel_values_images, which 5.17 insists on
    kind: Any = VideoLlavaImageProcessor if older_transformers() else CLIPImageProcessorPil
    processor: ProcessorMixin = made(
        image_processor=kind(
            size={"shortest_edge": TILE},
            crop_size={"height": TILE, "width": TILE},
            image_mean=MEAN,
            image_std=STD,
        ),
        tokenizer=tiny_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    return processor


def _images(dtype: torch.dtype, counts: Sequence[int]) -> BatchFeature:
    images = iter(noise_images(SIZES))
    rows = [[next(images) for _ in range(count)] for count in counts]
    return ragged(_processor(), prompts(PROMPT, IMAGE, counts), rows).to(dtype)


def _mixed(dtype: torch.dtype) -> BatchFeature:
    return mixed_rows(_processor(), SIZES[:3], dtype, frames=FRAMES, tokens=TOKENS)


FAMILIES = [
    TinyFamily(
        name=name,
        model_type="video_llava",
        config=_config,
        processor=_processor,
        prompt=PROMPT,
        inputs=inputs,
    )
    for name, inputs in (
        ("video_llava", partial(_images, counts=(1, 1, 1))),
        ("video_llava-images", partial(_images, counts=ROWS)),
        ("video_llava-video", partial(video_rows, frames=FRAMES, tokens=TOKENS)),
        ("video_llava-image+video", _mixed),
    )
]
