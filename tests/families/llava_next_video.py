"""`llava_next_video`: images as `llava_next`, and videos: 2 x 2 patches of a frame are a token."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from transformers import (
    BatchFeature,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextVideoConfig,
    LlavaNextVideoProcessor,
    ProcessorMixin,
)

from tests.families import QUESTIONS, TinyFamily, noise_images, ragged
from tests.families.llava import CLIP_SIZES, PROMPT, ROWS, filled, noise_videos, prompts, typed_out
from tests.families.llava_next import PINPOINTS, SIZES, image_processor, image_rows
from tests.tiny import (
    CHAT_TEMPLATE,
    IMAGE,
    PATCH,
    UNKNOWN,
    VIDEO,
    VOCABULARY,
    text_sizes,
    tiny_tokenizer,
)
from vflowopt_search.adapters.processors import without_video

FRAMES = 4
TOKENS = FRAMES * 4  # 4 x 4 patches of a frame, pooled two by two
VIDEO_PROMPT = PROMPT.replace(IMAGE, VIDEO)


def _config() -> LlavaNextVideoConfig:
    return LlavaNextVideoConfig(
        vision_config=CLIPVisionConfig(**CLIP_SIZES),
        text_config=LlamaConfig(**text_sizes()),
        image_token_index=VOCABULARY[IMAGE],
        video_token_index=VOCABULARY[VIDEO],
        image_grid_pinpoints=PINPOINTS,
    )


def _processor() -> ProcessorMixin:
    made: Any = without_video(LlavaNextVideoProcessor)
    processor: ProcessorMixin = made(
        image_processor=image_processor(),
        tokenizer=tiny_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    return processor


def _images(dtype: torch.dtype) -> BatchFeature:
    return image_rows(_processor(), ROWS, dtype)


def video_rows(dtype: torch.dtype, frames: int, tokens: int) -> BatchFeature:
    """Prompts of 1, 2 and 1 videos of so many frames and tokens each."""
    texts = [
        filled(text, VIDEO, [tokens] * count)
        for text, count in zip(prompts(VIDEO_PROMPT, VIDEO, ROWS), ROWS, strict=True)
    ]
    videos = noise_videos(sum(ROWS), frames)
    return typed_out(tiny_tokenizer(), texts, pixel_values_videos=videos).to(dtype)


def mixed_rows(
    processor: ProcessorMixin,
    sizes: Sequence[tuple[int, int]],
    dtype: torch.dtype,
    *,
    frames: int,
    tokens: int,
) -> BatchFeature:
    """Prompts of a video and an image, an image and a video, an image; `sizes` of the images."""
    # the processor knows no videos and would stop at their placeholder
    video = UNKNOWN * tokens
    markers = (f"{video} {IMAGE}", f"{IMAGE} in {video}", IMAGE)
    texts = [
        PROMPT.format(question=question).replace(IMAGE, marker)
        for question, marker in zip(QUESTIONS, markers, strict=True)
    ]
    images = [[image] for image in noise_images(sizes)]
    batch = ragged(processor, texts, images)
    batch["input_ids"][batch["input_ids"] == VOCABULARY[UNKNOWN]] = VOCABULARY[VIDEO]
    batch["pixel_values_videos"] = noise_videos(2, frames)
    return batch.to(dtype)


def _mixed(dtype: torch.dtype) -> BatchFeature:
    return mixed_rows(_processor(), SIZES[:3], dtype, frames=FRAMES, tokens=TOKENS)


FAMILIES = [
    TinyFamily(
        name=f"llava_next_video{kind}",
        model_type="llava_next_video",
        config=_config,
        processor=_processor,
        prompt=PROMPT,
        inputs=inputs,
    )
    for kind, inputs in (
        ("", _images),
        ("-video", partial(video_rows, frames=FRAMES, tokens=TOKENS)),
        ("-image+video", _mixed),
    )
]
