"""Qwen2-VL: a vision encoder that attends within an image or frame, four patches to a token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import Qwen2VLConfig, Qwen2VLImageProcessorPil, Qwen2VLProcessor
from transformers.processing_utils import ProcessorMixin

from tests.families import TinyFamily
from tests.families.mrope import (
    Markup,
    image_options,
    images_and_videos,
    several_images,
    single_images,
    sizes_of_text,
    videos,
)
from tests.tiny import PATCH, tiny_tokenizer
from vflowopt_search.adapters.processors import without_video

START, END = "<|vision_start|>", "<|vision_end|>"
IMAGE, VIDEO = "<|image_pad|>", "<|video_pad|>"


def _video(frame_tokens: Sequence[int]) -> str:
    return f"{START}{VIDEO * sum(frame_tokens)}{END}"


MARKUP = Markup(
    image=IMAGE,
    picture=f"{START}{IMAGE}{END}",
    video=_video,
    special=(START, END, IMAGE, VIDEO),
)


def token_options() -> dict[str, Any]:
    """The special tokens' ids, by their names in a Qwen configuration."""
    ids = MARKUP.token_ids()
    return {
        "image_token_id": ids[IMAGE],
        "video_token_id": ids[VIDEO],
        "vision_start_token_id": ids[START],
        "vision_end_token_id": ids[END],
    }


def _config() -> Qwen2VLConfig:
    vision = {
        "depth": 4,
        "embed_dim": 32,
        "hidden_size": 32,
        "mlp_ratio": 2,
        "num_heads": 4,
        "patch_size": PATCH,
    }
    return Qwen2VLConfig(text_config=sizes_of_text(MARKUP), vision_config=vision, **token_options())


def _processor() -> ProcessorMixin:
    return without_video(Qwen2VLProcessor)(
        image_processor=Qwen2VLImageProcessorPil(**image_options()),
        tokenizer=tiny_tokenizer(MARKUP.special),
        chat_template=MARKUP.chat_template(),
    )


PROMPT = f"USER: {MARKUP.picture} {{question}} ASSISTANT:"
FAMILIES = [
    TinyFamily(
        name=f"qwen2_vl{suffix}",
        model_type="qwen2_vl",
        config=_config,
        inputs=make(MARKUP, _processor),
        processor=_processor,
        prompt=PROMPT,
        tweak=MARKUP.unsaid,
    )
    for suffix, make in (
        ("", single_images),
        ("-images", several_images),
        ("-video", videos),
        ("-images+video", images_and_videos),
    )
]
