"""GLM-4.1V, 4.5V (with experts), 4.6V and likes: a video is spelled by frames of image tokens.

Between the marks of a video's beginning and end, image tokens belong to the video; transformers
takes images or a video in a batch, not both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import (
    Glm4vConfig,
    Glm4vImageProcessorPil,
    Glm4vMoeConfig,
    Glm4vProcessor,
    Glm46VConfig,
    Glm46VImageProcessorPil,
    Glm46VProcessor,
    GlmgaConfig,
    GlmOcrConfig,
    ProcessorMixin,
)

from tests.families import TinyFamily
from tests.families.mrope import (
    PAIR,
    Markup,
    image_options,
    several_images,
    single_images,
    sizes_of_text,
    videos,
)
from tests.families.qwen3_vl import lively_experts
from tests.tiny import PATCH, TILE, tiny_tokenizer
from vflowopt_search.adapters.processors import without_video

START, END = "<|begin_of_image|>", "<|end_of_image|>"
VIDEO_START, VIDEO_END = "<|begin_of_video|>", "<|end_of_video|>"
IMAGE, VIDEO = "<|image|>", "<|video|>"
EXPERTS = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}


def _frames(frame_tokens: Sequence[int]) -> str:
    frames = (f"{START}{IMAGE * tokens}{END}{second}" for second, tokens in enumerate(frame_tokens))
    return f"{VIDEO_START}{''.join(frames)}{VIDEO_END}"


MARKUP = Markup(
    image=IMAGE,
    picture=f"{START}{IMAGE}{END}",
    video=_frames,
    special=(START, END, VIDEO_START, VIDEO_END, IMAGE, VIDEO),
)


def _sizes(**text: Any) -> dict[str, Any]:
    """The parts of a configuration that all three share."""
    ids = MARKUP.token_ids()
    vision = {
        "depth": 4,
        "hidden_size": 32,
        "num_heads": 4,
        "image_size": 2 * TILE,
        "patch_size": PATCH,
        "out_hidden_size": 32,
        "intermediate_size": 64,
    }
    return {
        "text_config": sizes_of_text(MARKUP, partial_rotary_factor=1.0) | text,
        "vision_config": vision,
        "image_token_id": ids[IMAGE],
        "video_token_id": ids[VIDEO],
        "image_start_token_id": ids[START],
        "image_end_token_id": ids[END],
        "video_start_token_id": ids[VIDEO_START],
        "video_end_token_id": ids[VIDEO_END],
    }


def _config() -> Glm4vConfig:
    return Glm4vConfig(**_sizes())


def _moe_config() -> Glm4vMoeConfig:
    return Glm4vMoeConfig(**_sizes(**EXPERTS))


def _46_config() -> Glm46VConfig:
    return Glm46VConfig(**_sizes())


def _ocr_config() -> GlmOcrConfig:
    return GlmOcrConfig(**_sizes(head_dim=8))


def _ga_config() -> GlmgaConfig:
    return GlmgaConfig(**_sizes())


def _processor() -> ProcessorMixin:
    return without_video(Glm4vProcessor)(
        image_processor=Glm4vImageProcessorPil(**image_options(frames=PAIR)),
        tokenizer=tiny_tokenizer(MARKUP.special),
        chat_template=MARKUP.chat_template(),
    )


def _46_processor() -> ProcessorMixin:
    return without_video(Glm46VProcessor)(
        image_processor=Glm46VImageProcessorPil(**image_options(frames=PAIR)),
        tokenizer=tiny_tokenizer(MARKUP.special),
        chat_template=MARKUP.chat_template(),
    )


def _tweak(model: Any) -> None:
    lively_experts(model)
    MARKUP.unsaid(model)


FAMILIES = [
    TinyFamily(
        name=model_type + suffix,
        model_type=model_type,
        config=config,
        inputs=make(MARKUP, processor),
        processor=processor,
        prompt=f"USER: {MARKUP.picture} {{question}} ASSISTANT:",
        tweak=_tweak,
        # experts are chosen and weighed in fp32 whatever the model's precision
        fp64=5e-6 if model_type == "glm4v_moe" else 1e-9,
    )
    for model_type, config, processor in (
        ("glm4v", _config, _processor),
        ("glm4v_moe", _moe_config, _processor),
        ("glm46v", _46_config, _46_processor),
        ("glm_ocr", _ocr_config, _46_processor),
        ("glmga", _ga_config, _46_processor),
    )
    for suffix, make in (("", single_images), ("-images", several_images), ("-video", videos))
]
