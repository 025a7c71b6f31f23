"""Gemma 4: images and frames of any size, padded to one number of patches, nine to a token.

The tiny model sees images both ways in its sliding layers alone, as the large ones do.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import BatchFeature
from transformers.models.gemma4.configuration_gemma4 import (
    Gemma4Config,
    Gemma4TextConfig,
    Gemma4VisionConfig,
)

from tests.families import TinyFamily, noise_images, older_transformers
from tests.families.llava import PROMPT, filled, prompts, typed_out
from tests.tiny import IMAGE, PATCH, VIDEO, VOCABULARY, text_sizes, tiny_tokenizer

_TextConfig: Any = Gemma4TextConfig  # transformers annotates it in part only

POOLING = 3  # patches along a side of a token
MOST = 16 * POOLING**2  # patches that every image is padded to
WINDOW = 10  # shorter than the prompts
SIZES = ((3, 4), (2, 3), (4, 4), (5, 2))  # (rows, columns) of tokens
FRAMES = (2, 1, 3)  # frames of each video


def _config() -> Gemma4Config:
    vision = Gemma4VisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=8,
        pooling_kernel_size=POOLING,
        patch_size=PATCH,
        position_embedding_size=32,
    )
    text = _TextConfig(
        **text_sizes(),
        head_dim=8,
        global_head_dim=16,
        num_global_key_value_heads=1,
        attention_k_eq_v=True,
        hidden_size_per_layer_input=0,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2,
        use_bidirectional_attention="vision",
    )
    return Gemma4Config(
        vision_config=vision,
        text_config=text,
        audio_config=None,
        image_token_id=VOCABULARY[IMAGE],
        video_token_id=VOCABULARY[VIDEO],
    )


def _patches(sizes: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Noise pictures of so many tokens as padded patches (I, S, X), and their places (I, S, 2)."""
    side = POOLING * PATCH
    pictures = noise_images([(cols * side, rows * side) for rows, cols in sizes])
    patches, places = [], []
    for picture in pictures:
        pixels_HWC = torch.from_numpy(np.array(picture)) / 255
        flat = pixels_HWC.unfold(0, PATCH, PATCH).unfold(1, PATCH, PATCH)  # rows, columns, C, y, x
        rows, cols = flat.shape[:2]
        flat_PX = flat.permute(0, 1, 3, 4, 2).reshape(rows * cols, -1)
        place_P2 = torch.stack(
            [torch.arange(cols).repeat(rows), torch.arange(rows).repeat_interleave(cols)], 1
        )
        missing = MOST - rows * cols
        patches.append(pad(flat_PX, (0, 0, 0, missing)))
        places.append(pad(place_P2, (0, 0, 0, missing), value=-1))
    return torch.stack(patches), torch.stack(places)


def _typed(text: Sequence[str], dtype: torch.dtype, **visual: Tensor) -> BatchFeature:
    batch = typed_out(tiny_tokenizer(), text, **visual)
    ids = batch["input_ids"]
    kinds = (ids == VOCABULARY[IMAGE]) + 2 * (ids == VOCABULARY[VIDEO])
    batch["mm_token_type_ids"] = kinds.long()
    return batch.to(dtype)


def _images(dtype: torch.dtype, counts: Sequence[int]) -> BatchFeature:
    sizes = SIZES[: sum(counts)]
    tokens = iter([rows * cols for rows, cols in sizes])
    texts = [
        filled(text, IMAGE, [next(tokens) for _ in range(count)])
        for text, count in zip(prompts(PROMPT, IMAGE, counts), counts, strict=True)
    ]
    patches, places = _patches(sizes)
    return _typed(texts, dtype, pixel_values=patches, image_position_ids=places)


def _videos(dtype: torch.dtype) -> BatchFeature:
    """Between frames the prompt has text, as the times that the processor writes there."""
    frames = (2, 2, 2) if older_transformers() else FRAMES  # 5.17 wants all as long
    sizes = [size for size, count in zip(SIZES, frames, strict=False) for _ in range(count)]
    texts = []
    for text, count, (rows, cols) in zip(
        prompts(PROMPT, IMAGE, (1, 1, 1)), frames, SIZES, strict=False
    ):
        texts.append(text.replace(IMAGE, " and ".join([VIDEO * rows * cols] * count)))
    patches, places = _patches(sizes)
    visual = {"pixel_values_videos": patches, "video_position_ids": places}
    if older_transformers():
        visual = {name: one.view(3, 2, *one.shape[1:]) for name, one in visual.items()}
    else:
        visual["num_frames_per_video"] = torch.tensor(FRAMES)
    return _typed(texts, dtype, **visual)


def _calm(model: Any) -> None:
    """Layers are scaled by a buffer; embeddings, which are the head too, by the width's root."""
    embeddings = model.get_input_embeddings().weight
    embeddings.data /= embeddings.shape[1] ** 0.5


FAMILIES = [
    TinyFamily(
        name=name,
        model_type="gemma4",
        config=_config,
        processor=None,  # its video processor needs torchvision, and it is given one always
        prompt=PROMPT,
        inputs=inputs,
        tweak=_calm,
    )
    for name, inputs in (
        ("gemma4", partial(_images, counts=(1, 1, 1))),
        ("gemma4-images", partial(_images, counts=(1, 2, 1))),
        ("gemma4-video", _videos),
    )
]
