"""`mistral3` and `lighton_ocr`: a Pixtral tower, patches merged two by two, rows end in a break."""

from __future__ import annotations

from functools import partial

from transformers import (
    LightOnOcrConfig,
    Ministral3Config,
    Mistral3Config,
    Mistral4Config,
    MistralConfig,
    PreTrainedConfig,
    Qwen3Config,
)

from tests.families import TinyFamily
from tests.families.llava import PIXTRAL_PROMPT, PIXTRAL_TOKENS, pixtral_inputs, pixtral_vision
from tests.families.qwen3_vl import lively_experts
from tests.tiny import PATCH, text_sizes, vocabulary_with

VOCABULARY = vocabulary_with(PIXTRAL_TOKENS)
MERGE = 2
ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 2048 / 16,
    "original_max_position_embeddings": 16,
    "llama_4_scaling_beta": 0.1,
}
SIZES = ((70, 56), (42, 98), (84, 56), (56, 56))  # (height, width) in pixels


def _config(text: PreTrainedConfig) -> Mistral3Config:
    return Mistral3Config(
        vision_config=pixtral_vision(),
        text_config=text,
        image_token_index=VOCABULARY["[IMG]"],
        spatial_merge_size=MERGE,
        tie_word_embeddings=False,
    )


def _mistral() -> Mistral3Config:
    sizes = text_sizes(len(VOCABULARY))
    return _config(MistralConfig(**sizes, head_dim=8, sliding_window=None))


def _ministral() -> Mistral3Config:
    """The text model of Ministral 3: its queries grow with the position, here every 16."""
    sizes = text_sizes(len(VOCABULARY))
    return _config(Ministral3Config(**sizes, head_dim=8, rope_parameters=dict(ROPE)))


def _mistral4() -> Mistral3Config:
    """The text model of Mistral Small 4: experts, keys and values compressed in the cache."""
    sizes = text_sizes(len(VOCABULARY)) | {"num_key_value_heads": 4}
    return _config(
        Mistral4Config(
            **sizes,
            moe_intermediate_size=32,
            n_routed_experts=4,
            num_experts_per_tok=2,
            kv_lora_rank=16,
            q_lora_rank=16,
            qk_rope_head_dim=4,
            qk_nope_head_dim=4,
            v_head_dim=8,
            rope_parameters=dict(ROPE),
        )
    )


def _lighton_ocr() -> LightOnOcrConfig:
    return LightOnOcrConfig(
        vision_config=pixtral_vision(),
        text_config=Qwen3Config(**text_sizes(len(VOCABULARY)), head_dim=8),
        image_token_id=VOCABULARY["[IMG]"],
        spatial_merge_size=MERGE,
        tie_word_embeddings=False,
    )


FAMILIES = [
    TinyFamily(
        name=name,
        model_type=name.partition("-")[0],
        config=config,
        processor=None,  # PixtralProcessor's file imports torchvision
        prompt=PIXTRAL_PROMPT,
        inputs=partial(pixtral_inputs, side=MERGE * PATCH, sizes=SIZES),
        tweak=lively_experts,
    )
    for name, config in (
        ("mistral3", _mistral),
        ("mistral3-ministral3", _ministral),
        ("mistral3-mistral4", _mistral4),
        ("lighton_ocr", _lighton_ocr),
    )
]
