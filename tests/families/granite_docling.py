"""Granite Docling: tiles of 64 patches, 4 or 16 tokens each; deepstack features of two layers."""

from __future__ import annotations

import torch
from transformers import BatchFeature, GraniteDoclingConfig

from tests.families import TinyFamily
from tests.families.llava import PROMPT, filled, normalised, prompts, typed_out
from tests.tiny import IMAGE, PATCH, VOCABULARY, text_sizes, tiny_tokenizer

TILE = 8 * PATCH  # pixels
TILES = (2, 1, 3)  # tiles of each page
SCALE = 4  # patches along a side of a token


def _config() -> GraniteDoclingConfig:
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": TILE,
        "patch_size": PATCH,
        "out_hidden_size": 32,
        "scale_factor": SCALE,
        "deepstack_visual_indexes": [0, 2],
    }
    scales = {
        "embedding_multiplier": 2.0,
        "logits_scaling": 1.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.35,
    }
    return GraniteDoclingConfig(
        vision_config=vision,
        text_config=text_sizes() | scales,
        image_token_id=VOCABULARY[IMAGE],
        tie_word_embeddings=False,
    )


def _inputs(dtype: torch.dtype, fine: bool) -> BatchFeature:
    """Every page has as many tiles as the longest, those behind its own are padding."""
    tokens = (TILE // PATCH // SCALE) ** 2 * (4 if fine else 1)
    texts = [
        filled(text, IMAGE, [tokens] * count)
        for text, count in zip(prompts(PROMPT, IMAGE, TILES), TILES, strict=True)
    ]
    pixels = torch.zeros(len(TILES), max(TILES), 3, TILE, TILE)
    real = torch.arange(max(TILES)) < torch.tensor(TILES)[:, None]
    pixels[real] = torch.stack(normalised([(TILE, TILE)] * sum(TILES)))
    batch = typed_out(tiny_tokenizer(), texts, pixel_values=pixels, pixel_attention_mask=real)
    if fine:
        batch["tile_fine_mask"] = torch.ones_like(real)
    return batch.to(dtype)


def _page(dtype: torch.dtype) -> BatchFeature:
    return _inputs(dtype, fine=False)


def _fine_page(dtype: torch.dtype) -> BatchFeature:
    return _inputs(dtype, fine=True)


FAMILIES = [
    TinyFamily(
        name=name,
        model_type="granite_docling",
        config=_config,
        processor=None,  # its own cuts pages into tiles of fixed sizes, which no adapter sees
        prompt=PROMPT,
        inputs=inputs,
    )
    for name, inputs in (("granite_docling", _page), ("granite_docling-fine", _fine_page))
]
