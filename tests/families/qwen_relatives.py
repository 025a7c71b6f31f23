"""Families with a vision encoder like Qwen-VL's before a text decoder of another kind.

They are given prompts and patches of Qwen's processors: what a noise picture shows where does not
matter here. Their own processors want a video processor, which needs torchvision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    BatchFeature,
    CohereCompassConfig,
    HyperCLOVAXConfig,
    HyperCLOVAXVisionV2Config,
    MuseGlimmerConfig,
    MuseSparkConfig,
    PreTrainedConfig,
)

from tests.families import TinyFamily
from tests.families.mrope import images_and_videos, sizes_of_text, untyped, videos
from tests.families.qwen2_5_vl import WINDOW, _processor
from tests.families.qwen2_vl import MARKUP, PROMPT, token_options
from tests.families.qwen3_vl import TIMED, VISION, lively_experts
from tests.families.square_tiles import quiet
from tests.tiny import PATCH, text_sizes, vocabulary_with

IDS = MARKUP.token_ids()
TEXT = text_sizes(len(vocabulary_with(MARKUP.special)))
PLACEHOLDERS = {name: token_options()[name] for name in ("image_token_id", "video_token_id")}
KINDS = ["sliding_attention", "sliding_attention", "full_attention"] * 2
NARROW = 24  # shorter than the prompts


def _cohere_compass() -> CohereCompassConfig:
    """Layers that look back `NARROW` tokens, then one without positions that sees all."""
    rope = sizes_of_text(TIMED, mrope_interleaved=True)["rope_parameters"]
    text = TEXT | {
        "layer_types": KINDS,
        "sliding_window": NARROW,
        "rope_parameters": {"sliding_attention": rope, "full_attention": None},
    }
    return CohereCompassConfig(text_config=text, vision_config=VISION, **token_options())


def _hyperclovax() -> HyperCLOVAXVisionV2Config:
    vision = {
        "model_type": "qwen2_5_vl_vision",
        "depth": 4,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 4,
        "patch_size": PATCH,
        "out_hidden_size": 32,
        "window_size": WINDOW,
        "fullatt_block_indexes": [1, 2],
    }
    return HyperCLOVAXVisionV2Config(
        text_config=HyperCLOVAXConfig(**TEXT), vision_config=vision, **PLACEHOLDERS
    )


def _muse_options() -> dict[str, Any]:
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "patch_size": PATCH,
        "pos_emb_height": 3,
        "pos_emb_width": 3,
        "layer_types": ["window_attention", "full_attention"] * 2,
    }
    text = TEXT | {"head_dim": 8, "sliding_window": NARROW, "layer_types": KINDS}
    text |= {
        "layer_rope_theta": [10000.0, 10000.0, 0] * 2,
        "qk_scale_factor": 1.5,
        # logits leave the head as the tests read them there
        "output_multiplier": 1.0,
        "final_logit_softcapping": 2.0**30,
    }
    return {
        "text_config": text,
        "vision_config": vision,
        "out_hidden_size": 128,
        "projector_hidden_size": 32,
        **PLACEHOLDERS,
    }


def _muse_glimmer() -> MuseGlimmerConfig:
    return MuseGlimmerConfig(**_muse_options())


def _muse_spark() -> MuseSparkConfig:
    audio = {
        "patch_sizes": [2, 2],
        "hidden_sizes": [8, 8],
        "depths": [1, 1],
        "num_hidden_layers": 2,
        "out_hidden_size": 32,
    }
    options = _muse_options()
    options["text_config"] |= {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "moe_hidden_size": 32,
    }
    return MuseSparkConfig(**options, audio_config=audio, audio_token_id=0)


def _tweak(model: Any) -> None:
    lively_experts(model)
    quiet(model)
    MARKUP.unsaid(model)


def _variant(
    name: str,
    config: Callable[[], PreTrainedConfig],
    inputs: Callable[[torch.dtype], BatchFeature],
    fp64: float = 1e-9,
) -> TinyFamily:
    return TinyFamily(
        name=name,
        model_type=name.partition("-")[0],
        config=config,
        processor=None,  # see above
        prompt=PROMPT,
        inputs=inputs,
        tweak=_tweak,
        fp64=fp64,
    )


FAMILIES = [
    variant
    for suffix, make in (("", images_and_videos), ("-video", videos))
    for plain in (untyped(make(MARKUP, _processor)),)
    for variant in (
        _variant(f"cohere_compass{suffix}", _cohere_compass, make(TIMED, _processor)),
        # of these two even the stock model says other things in generate than in one forward,
        # by 1e-5
        _variant(f"hyperclovax_vision_v2{suffix}", _hyperclovax, plain, fp64=1e-4),
        _variant(f"muse_glimmer{suffix}", _muse_glimmer, plain),
        _variant(f"muse_spark{suffix}", _muse_spark, plain, fp64=1e-4),
    )
]
