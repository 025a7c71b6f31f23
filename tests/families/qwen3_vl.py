"""Qwen3-VL, dense and with experts, and Cosmos 3, which is built of its parts.

Features of three vision layers enter the first three decoder layers (deepstack), and the frames of
a video stand apart in the prompt, each behind its time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from transformers import (
    Cosmos3OmniConfig,
    ProcessorMixin,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLMoeConfig,
    Qwen3VLProcessor,
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
from tests.families.qwen2_vl import END, MARKUP, PROMPT, START, VIDEO, token_options
from tests.tiny import PATCH, tiny_tokenizer
from vflowopt_search.adapters.processors import without_video

VISION = {
    "depth": 4,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 4,
    "patch_size": PATCH,
    "out_hidden_size": 32,
    "num_position_embeddings": 64,
    "deepstack_visual_indexes": [0, 1, 2],
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def _frames(frame_tokens: Sequence[int]) -> str:
    return "".join(
        f"<{second}.0 seconds>{START}{VIDEO * tokens}{END}"
        for second, tokens in enumerate(frame_tokens)
    )


TIMED = dataclasses.replace(MARKUP, video=_frames)


def _config() -> Qwen3VLConfig:
    text = sizes_of_text(TIMED, mrope_interleaved=True) | {"head_dim": 8}
    return Qwen3VLConfig(text_config=text, vision_config=VISION, **token_options())


def _moe_config() -> Qwen3VLMoeConfig:
    text = sizes_of_text(TIMED, mrope_interleaved=True) | {"head_dim": 8} | EXPERTS
    return Qwen3VLMoeConfig(text_config=text, vision_config=VISION, **token_options())


def _cosmos_config() -> Cosmos3OmniConfig:
    text = {"model_type": "qwen3_vl_text"} | sizes_of_text(TIMED, mrope_interleaved=True)
    vision = {"model_type": "qwen3_vl_vision"} | VISION
    return Cosmos3OmniConfig(
        text_config=text | {"head_dim": 8}, vision_config=vision, **token_options()
    )


def _processor() -> ProcessorMixin:
    return without_video(Qwen3VLProcessor)(
        image_processor=Qwen2VLImageProcessorPil(**image_options()),
        tokenizer=tiny_tokenizer(TIMED.special),
        chat_template=TIMED.chat_template(),
    )


def lively_experts(model: Any) -> None:
    """Draw experts as strong as other layers, and run them in any precision."""
    model.set_experts_implementation("eager")  # the grouped kernel knows no double precision
    for name, parameter in model.named_parameters():
        if "experts" in name and parameter.dim() == 3:  # all experts counted as fan-in
            parameter.data *= parameter.shape[1] ** 0.5


def _tweak(model: Any) -> None:
    lively_experts(model)
    TIMED.unsaid(model)


FAMILIES = [
    TinyFamily(
        name=model_type + suffix,
        model_type=model_type,
        config=config,
        inputs=make(TIMED, _processor),
        processor=_processor,
        prompt=PROMPT,
        tweak=_tweak,
    )
    for model_type, config, suffix, make in (
        ("qwen3_vl", _config, "", single_images),
        ("qwen3_vl", _config, "-images", several_images),
        ("qwen3_vl", _config, "-video", videos),
        ("qwen3_vl", _config, "-images+video", images_and_videos),
        ("qwen3_vl_moe", _moe_config, "", single_images),
        ("qwen3_vl_moe", _moe_config, "-images", several_images),
        ("qwen3_vl_moe", _moe_config, "-video", videos),
        ("cosmos3_omni", _cosmos_config, "", images_and_videos),
        ("cosmos3_omni", _cosmos_config, "-video", videos),
    )
]
