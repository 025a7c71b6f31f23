"""Granite Docling: tiles of 64 patches, 4 or 16 tokens each; deepstack features of two layers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from transformers import BatchFeature, GraniteDoclingConfig

from tests.families import TinyFamily
from tests.families.llava import PROMPT, normalised, prompts, typed_out
from tests.tiny import IMAGE, PATCH, VOCABULARY, text_sizes, tiny_tokenizer

TILE = 8 * PATCH  # pixels
PAGES = ((2,), (1,), (3,))  # tiles of each page of a prompt
SEVERAL = ((2,), (1, 2), (1,))
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


def _inputs(
    dtype: torch.dtype, pages: Sequence[Sequence[int]] = PAGES, *, fine: bool = False
) -> BatchFeature:
    """Every prompt has as many tiles as the longest, those behind its own are padding."""
    tokens = (TILE // PATCH // SCALE) ** 2 * (4 if fine else 1)
    counts = [sum(row) for row in pages]
    texts = [
        text.replace(IMAGE, " and ".join([" ".join([IMAGE * tokens] * page) for page in row]))
        for text, row in zip(prompts(PROMPT, IMAGE, (1, 1, 1)), pages, strict=True)
    ]
    pixels = torch.zeros(len(counts), max(counts), 3, TILE, TILE)
    real = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
    pixels[real] = torch.stack(normalised([(TILE, TILE)] * sum(counts)))
    batch = typed_out(tiny_tokenizer(), texts, pixel_values=pixels, pixel_attention_mask=real)
    if fine:
        batch["tile_fine_mask"] = torch.ones_like(real)
    return batch.to(dtype)


FAMILIES = [
    TinyFamily(
        name=name,
        model_type="granite_docling",
        config=_config,
        processor=None,  # its own cuts pages into tiles of fixed sizes, which no adapter sees
        prompt=PROMPT,
        inputs=inputs,
    )
    for name, inputs in (
        ("granite_docling", _inputs),
        ("granite_docling-fine", partial(_inputs, fine=True)),
        ("granite_docling-images", partial(_inputs, pages=SEVERAL)),
    )
]
