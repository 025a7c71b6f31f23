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
from tests.families.mrope import image_options, images_and_videos, sizes_of_text
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
    batch = images_and_videos(MARKUP, _processor)(dtype)
    del batch["mm_token_type_ids"]  # they tell an image from a video by token id alone
    batch["video_second_per_grid"] = torch.tensor([0.5, 1.0])
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
        name=model_type,
        model_type=model_type,
        config=config,
        inputs=_inputs,
        processor=None,
        prompt=PROMPT,
        tweak=_tweak,
        newest_only=True,
    )
    for model_type, config in MODELS
]
