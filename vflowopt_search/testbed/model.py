"""Architecture of the testbed: a stock LLaVA-OneVision model of three million parameters."""

from __future__ import annotations

import math

import torch
from torch import nn
from transformers import (
    GenerationConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
)

from vflowopt_search.testbed.vocabulary import EOS, IMAGE, PAD, VIDEO, VOCABULARY

TILE = 56  # pixels
PATCH = 8  # pixels
PATCHES_PER_TILE = (TILE // PATCH) ** 2
WIDTH = 128
PINPOINTS = [[TILE, TILE], [TILE, 2 * TILE], [2 * TILE, TILE], [2 * TILE, 2 * TILE]]


def make_config() -> LlavaOnevisionConfig:
    """Configuration: SigLIP tower of six layers, Qwen2 language model of eight."""
    vision = SiglipVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=6,
        num_attention_heads=4,
        image_size=TILE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    text = Qwen2Config(
        vocab_size=len(VOCABULARY),
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=VOCABULARY[PAD],
        eos_token_id=VOCABULARY[EOS],
    )
    return LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=VOCABULARY[IMAGE],
        video_token_index=VOCABULARY[VIDEO],
        image_grid_pinpoints=PINPOINTS,
        tie_word_embeddings=True,
    )


def make_model(seed: int) -> LlavaOnevisionForConditionalGeneration:
    """An untrained model in float32; its initial weights depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaOnevisionForConditionalGeneration(make_config())
        _scale_by_fan_in(model.model.language_model)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        eos_token_id=VOCABULARY[EOS],
        pad_token_id=VOCABULARY[PAD],
        do_sample=False,
        max_new_tokens=4,
    )
    return model


def _scale_by_fan_in(language_model: nn.Module) -> None:
    """Initialise by fan-in: at this width the usual 0.02 learns far more slowly."""
    for module in language_model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=1 / math.sqrt(module.weight.shape[-1]))
