"""Molmo 2: a low-resolution view, then crops, four patches to a token; images see each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature, Molmo2Config

from tests.families import TinyFamily
from tests.families.llava import PROMPT, ROWS, filled, normalised, prompts, typed_out
from tests.tiny import IMAGE, PATCH, VOCABULARY, text_sizes, tiny_tokenizer, vocabulary_with

SIDE = 4  # patches along a side of a crop
BREAK = "<im_col>"
GRIDS = ((2, 2, 2, 4), (2, 2, 2, 4), (2, 2, 2, 2), (2, 2, 2, 4))  # low-resolution, then crops
FRAMES = (2, 1, 3)  # frames of each video


def _config() -> Molmo2Config:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8}
    vision = heads | {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "image_size": [SIDE * PATCH, SIDE * PATCH],
        "patch_size": PATCH,
    }
    adapter = heads | {
        "vision_feature_layer": [3, 1],
        "hidden_size": 32,
        "intermediate_size": 64,
        "text_hidden_size": 32,
    }
    vocabulary = vocabulary_with([BREAK])
    text = text_sizes(len(vocabulary)) | {"head_dim": 8, "additional_vocab_size": 0}
    return Molmo2Config(
        vision_config=vision,
        adapter_config=adapter,
        text_config=text | {"rope_scaling_layers": [0, 2]},
        image_patch_id=VOCABULARY[IMAGE],
    )


def _pooled(rows: int, cols: int, crop: int, skip: int = 0) -> Tensor:
    """Places of the patches of each token of a crop, which skips its first columns, (N, 4)."""
    place = torch.arange(SIDE**2).view(SIDE, SIDE)[: 2 * rows, skip : skip + 2 * cols]
    blocks = place.unfold(0, 2, 2).unfold(1, 2, 2).reshape(-1, 4)
    return blocks + crop * SIDE**2


def _mosaic(first: int, cols: int) -> Tensor:
    """A view of four tokens, then one crop, or two whose tokens stand side by side."""
    low, left = _pooled(2, 2, first), _pooled(2, 2, first + 1)
    if cols == 2:
        return torch.cat([low, left])
    right = _pooled(2, 2, first + 2)
    right[1] = torch.tensor([right[1, 0], -1, right[1, 2], -1])  # a token that pools two patches
    rows = zip(torch.split(left, 2), torch.split(right, 2), strict=True)
    return torch.cat([low, *(part for row in rows for part in row)])


def _patches(crops: int) -> Tensor:
    """Noise crops as patches, (crops, P, X)."""
    pictures = torch.stack(normalised([(SIDE * PATCH, SIDE * PATCH)] * crops))
    patches = pictures.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).permute(0, 2, 3, 4, 5, 1)
    return patches.reshape(crops, SIDE**2, -1)


def _typed(texts: Sequence[str], dtype: torch.dtype, **visual: Tensor) -> BatchFeature:
    batch = typed_out(tiny_tokenizer([BREAK]), texts, **visual)
    ids = batch["input_ids"]
    batch["mm_token_type_ids"] = (
        (ids == VOCABULARY[IMAGE]) | (ids == vocabulary_with([BREAK])[BREAK])
    ).long()
    return batch.to(dtype)


def _spelled(down: int, across: int, rows: int, cols: int) -> str:
    return IMAGE * (down * across) + " " + (IMAGE * cols + BREAK) * rows


def _images(dtype: torch.dtype) -> BatchFeature:
    spelled = iter([_spelled(*grid) for grid in GRIDS])
    texts = []
    for text, count in zip(prompts(PROMPT, IMAGE, ROWS), ROWS, strict=True):
        head, *tails = text.split(IMAGE)
        texts.append(head + "".join(next(spelled) + tail for tail in tails[:count]))
    pooling, crops = [], 0
    for *_, cols in GRIDS:
        pooling.append(_mosaic(crops, cols))
        crops += 1 + cols // 2
    return _typed(
        texts,
        dtype,
        pixel_values=_patches(crops),
        image_token_pooling=torch.cat(pooling),
        image_grids=torch.tensor(GRIDS),
    )


def _videos(dtype: torch.dtype) -> BatchFeature:
    texts = [
        filled(text, IMAGE, [1]).replace(IMAGE, " and ".join([IMAGE * 4] * count))
        for text, count in zip(prompts(PROMPT, IMAGE, (1, 1, 1)), FRAMES, strict=True)
    ]
    return _typed(
        texts,
        dtype,
        pixel_values_videos=_patches(sum(FRAMES)),
        video_token_pooling=torch.cat([_pooled(2, 2, frame) for frame in range(sum(FRAMES))]),
        video_grids=torch.tensor([(count, 2, 2) for count in FRAMES]),
    )


def _unscaled(model: Any) -> None:
    """Places of the vision tower are drawn by fan-in of their width: as strong as embeddings."""
    model.model.vision_tower.positional_embedding.data *= 4


FAMILIES = [
    TinyFamily(
        name=name,
        model_type="molmo2",
        config=_config,
        processor=None,  # its video processor needs torchvision
        prompt=PROMPT,
        inputs=inputs,
        tweak=_unscaled,
    )
    for name, inputs in (("molmo2", _images), ("molmo2-video", _videos))
]
