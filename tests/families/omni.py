"""Qwen2.5-Omni and Qwen3-Omni, the parts that see and answer ("thinkers"), without their audio.

Their own processor needs a feature extractor of audio; that of the VL models spells the same
prompts, but for the second per frame, which these always want.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    BatchFeature,
    PreTrainedConfig,
    ProcessorMixin,
    Qwen2_5OmniThinkerConfig,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
    Qwen3OmniMoeThinkerConfig,
)

from tests.families import TinyFamily
from tests.families.mrope import image_options, images_and_videos, sizes_of_text, untyped, videos
from tests.families.qwen2_5_vl import VISION as WINDOWED
from tests.families.qwen2_vl import MARKUP, PROMPT, token_options
from tests.families.qwen3_vl import EXPERTS, VISION, lively_experts
from tests.tiny import tiny_tokenizer
from vflowopt_search.adapters.processors import without_video

AUDIO = {
    "d_model": 32,
    "encoder_layers": 1,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "output_dim": 32,
    "num_mel_bins": 16,
    "max_source_positions": 32,
}


def _config() -> Qwen2_5OmniThinkerConfig:
    return Qwen2_5OmniThinkerConfig(
        text_config=sizes_of_text(MARKUP),
        vision_config=WINDOWED,
        audio_config=AUDIO,
        **token_options(),
    )


def _moe_config() -> Qwen3OmniMoeThinkerConfig:
    text = sizes_of_text(MARKUP, mrope_interleaved=True) | {"head_dim": 8} | EXPERTS
    return Qwen3OmniMoeThinkerConfig(
        text_config=text, vision_config=VISION, audio_config=AUDIO, **token_options()
    )


def _processor() -> ProcessorMixin:
    return without_video(Qwen2VLProcessor)(
        image_processor=Qwen2VLImageProcessorPil(**image_options()),
        tokenizer=tiny_tokenizer(MARKUP.special),
    )


def _inputs(dtype: torch.dtype) -> BatchFeature:
    return _timed(images_and_videos(MARKUP, _processor), [0.5, 1.0], dtype)


def _videos(dtype: torch.dtype) -> BatchFeature:
    return _timed(videos(MARKUP, _processor), [0.5, 1.0, 2.0], dtype)


def _timed(
    make: Callable[[torch.dtype], BatchFeature], seconds: list[float], dtype: torch.dtype
) -> BatchFeature:
    """With the seconds of a frame pair; an image is told from a video by token id alone."""
    batch = untyped(make)(dtype)
    batch["video_second_per_grid"] = torch.tensor(seconds)
    return batch


def _tweak(model: Any) -> None:
    lively_experts(model)
    MARKUP.unsaid(model)


MODELS: tuple[tuple[str, Callable[[], PreTrainedConfig]], ...] = (
    ("qwen2_5_omni_thinker", _config),
    ("qwen3_omni_moe_thinker", _moe_config),
)
FAMILIES = [
    TinyFamily(
        name=model_type + suffix,
        model_type=model_type,
        config=config,
        inputs=inputs,
        processor=None,
        prompt=PROMPT,
        tweak=_tweak,
        newest_only=True,
    )
    for model_type, config in MODELS
    for suffix, inputs in (("", _inputs), ("-video", _videos))
]
