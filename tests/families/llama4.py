"""Llama 4: square tiles of 64 patches and 16 tokens here, chunked layers, layers without RoPE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import BatchFeature, PreTrainedConfig
from transformers.models.llama4.configuration_llama4 import (
    Llama4Config,
    Llama4TextConfig,
    Llama4VisionConfig,
)

from tests.families import QUESTIONS, TinyFamily, noise_images
from tests.tiny import text_sizes, tiny_tokenizer, vocabulary_with

TILE, PATCH, TOKENS = 56, 7, 16  # pixels, pixels, tokens of a tile
START, END, WHOLE, TOKEN = "<|image_start|>", "<|image_end|>", "<|image|>", "<|patch|>"
NEXT, ROW_END = "<|tile_x_separator|>", "<|tile_y_separator|>"
EXTRA = (START, END, WHOLE, TOKEN, NEXT, ROW_END)
PROMPT = f"USER: {WHOLE} {{question}} ASSISTANT:"
WIDE, NARROW = 512, 24  # attention chunks: wider than any prompt, narrower than most


def _config(chunk: int) -> PreTrainedConfig:
    vocabulary = vocabulary_with(EXTRA)
    vision = Llama4VisionConfig(
        hidden_size=32,
        intermediate_size=128,  # four patches side by side
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=TILE,
        patch_size=PATCH,
        vision_output_dim=32,
        projector_input_dim=32,
        projector_output_dim=32,
    )
    text = Llama4TextConfig(
        **text_sizes(len(vocabulary)),
        head_dim=8,
        intermediate_size_mlp=64,
        num_local_experts=4,
        interleave_moe_layer_step=2,
        no_rope_layer_interval=3,
        attention_chunk_size=chunk,
    )
    return Llama4Config(
        vision_config=vision,
        text_config=text,
        boi_token_index=vocabulary[START],
        eoi_token_index=vocabulary[END],
        image_token_index=vocabulary[TOKEN],
    )


def _lively_experts(model: Any) -> None:
    """Experts keep input before output, so that drawing by fan-in makes them too faint."""
    for name, parameter in model.named_parameters():
        if "experts." in name and parameter.dim() == 3:
            parameter.data *= parameter.shape[-1] ** 0.5


def _tiled(rows: int, columns: int) -> str:
    """How the processor writes an image of this many tiles; a whole view comes last."""
    tiles = (NEXT.join([TOKEN * TOKENS] * columns) + ROW_END) * rows
    return START + (tiles if rows * columns > 1 else "") + WHOLE + TOKEN * TOKENS + END


def _inputs(layouts: Sequence[Sequence[tuple[int, int]]], dtype: torch.dtype) -> BatchFeature:
    """By hand: the image processor needs torchvision. A layout is rows and columns of tiles."""
    texts = [
        PROMPT.replace(WHOLE, "".join(_tiled(*layout) for layout in row)).format(question=question)
        for row, question in zip(layouts, QUESTIONS, strict=True)
    ]
    batch: Any = tiny_tokenizer(EXTRA)(texts, padding=True, return_tensors="pt")
    counts = [r * c + (r * c > 1) for row in layouts for r, c in row]
    tiles = [
        torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(TILE, TILE, 3)
        for image in noise_images([(TILE, TILE)] * sum(counts))
    ]
    pixels = torch.stack(tiles).permute(0, 3, 1, 2).float() / 127.5 - 1
    chosen = {name: batch[name] for name in ("input_ids", "attention_mask")}
    return BatchFeature(chosen | {"pixel_values": pixels}).to(dtype)


def _variant(name: str, layouts: Sequence[Sequence[tuple[int, int]]], chunk: int) -> TinyFamily:
    return TinyFamily(
        name=name,
        model_type="llama4",
        config=lambda: _config(chunk),
        processor=None,  # its image processor is the only one without a twin for PIL
        prompt=PROMPT,
        inputs=lambda dtype: _inputs(layouts, dtype),
        tweak=_lively_experts,
        fp64=1e-5,  # its rotary embeddings are fp32 whatever the dtype
    )


FAMILIES = [
    _variant("llama4", [[(1, 1)], [(1, 2)], [(2, 1)]], WIDE),
    _variant("llama4-images", [[(1, 1)], [(2, 1), (1, 1)], [(1, 1)]], WIDE),
    _variant("llama4-chunks", [[(1, 1)], [(1, 2)], [(2, 1)]], NARROW),
]
