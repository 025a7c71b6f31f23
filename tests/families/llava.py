"""`llava` with a CLIP tower, its CLS token dropped or kept, and with a Pixtral tower.

The Pixtral tower sees images of 35 to 63 pixels in patches of 7, rows of [IMG] end in [IMG_BREAK].
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import (
    BatchFeature,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    PixtralVisionConfig,
    PreTrainedTokenizerFast,
)

from tests.families import QUESTIONS, TinyFamily, noise_images, ragged
from tests.tiny import (
    IMAGE,
    MEAN,
    PATCH,
    STD,
    TILE,
    TOKENS_PER_TILE,
    VOCABULARY,
    text_sizes,
    tiny_config,
    tiny_processor,
    tiny_tokenizer,
    vocabulary_with,
)

PROMPT = "USER: <image> {question} ASSISTANT:"
ROWS = (1, 2, 1)  # images of each prompt
SIZES = ((28, 28), (50, 40), (20, 60), (33, 33))

PIXTRAL_PROMPT = "USER: [IMG] {question} ASSISTANT:"
PIXTRAL_TOKENS = ("[IMG]", "[IMG_BREAK]", "[IMG_END]")
PIXTRAL_SIZES = ((56, 42), (35, 49), (42, 42), (49, 63))  # (height, width) in pixels

CLIP_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": TILE,
    "patch_size": PATCH,
    "projection_dim": 32,
}


def prompts(prompt: str, marker: str, counts: Sequence[int]) -> list[str]:
    """One prompt per question, with as many markers as `counts` says."""
    return [
        prompt.format(question=question).replace(marker, " ".join([marker] * count))
        for question, count in zip(QUESTIONS, counts, strict=True)
    ]


def typed_out(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], **pixels: torch.Tensor
) -> BatchFeature:
    """A left-padded batch whose placeholders already stand in the texts."""
    encoded: Any = tokenizer(list(texts), padding=True, return_tensors="pt")
    ids = {key: encoded[key] for key in ("input_ids", "attention_mask")}
    return BatchFeature(ids | pixels)


def filled(text: str, marker: str, counts: Sequence[int]) -> str:
    """`text` in which each marker is repeated, the first one `counts[0]` times and so on."""
    head, *tails = text.split(marker)
    repeated = (marker * count + tail for count, tail in zip(counts, tails, strict=True))
    return head + "".join(repeated)


def normalised(sizes: Sequence[tuple[int, int]], seed: int = 5) -> list[torch.Tensor]:
    """Noise pictures of these (height, width) as an image processor would give them, (3, H, W)."""
    mean_C11, std_C11 = (torch.tensor(value)[:, None, None] for value in (MEAN, STD))
    images = noise_images([(width, height) for height, width in sizes], seed)
    raw_3HW = [torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 for image in images]
    return [(picture - mean_C11) / std_C11 for picture in raw_3HW]


def noise_videos(count: int, frames: int) -> torch.Tensor:
    """Noise videos of square frames, normalised, (count, frames, 3, TILE, TILE)."""
    flat = torch.stack(normalised([(TILE, TILE)] * (count * frames)))
    return flat.view(count, frames, 3, TILE, TILE)


def padded(pictures: Sequence[torch.Tensor]) -> torch.Tensor:
    """Pictures of different size in one tensor, zeros right of them and below."""
    height, width = (max(picture.shape[i] for picture in pictures) for i in (1, 2))
    batch = torch.zeros(len(pictures), 3, height, width)
    for canvas, picture in zip(batch, pictures, strict=True):
        canvas[:, : picture.shape[1], : picture.shape[2]] = picture
    return batch


def pixtral_inputs(
    dtype: torch.dtype,
    side: int = PATCH,
    sizes: Sequence[tuple[int, int]] = PIXTRAL_SIZES,
) -> BatchFeature:
    """Prompts of 1, 2 and 1 images, one token per `side` x `side` pixels, in one padded batch."""
    shapes = [(height // side, width // side) for height, width in sizes]
    blocks = ["[IMG_BREAK]".join(["[IMG]" * cols] * rows) + "[IMG_END]" for rows, cols in shapes]
    texts, used = [], 0
    for text, count in zip(prompts(PIXTRAL_PROMPT, "[IMG]", ROWS), ROWS, strict=True):
        head, *tails = text.split("[IMG]")
        own = zip(blocks[used : used + count], tails, strict=True)
        texts.append(head + "".join(block + tail for block, tail in own))
        used += count
    return typed_out(
        tiny_tokenizer(PIXTRAL_TOKENS),
        texts,
        pixel_values=padded(normalised(sizes)),
        image_sizes=torch.tensor(sizes),
    ).to(dtype)


def _inputs(dtype: torch.dtype, counts: Sequence[int] = (1, 1, 1)) -> BatchFeature:
    images = iter(noise_images(SIZES))
    rows = [[next(images) for _ in range(count)] for count in counts]
    texts = prompts(PROMPT, IMAGE, counts)
    return ragged(tiny_processor("llava"), texts, rows).to(dtype)


def _cls_config() -> LlavaConfig:
    return LlavaConfig(
        vision_config=CLIPVisionConfig(**CLIP_SIZES),
        text_config=LlamaConfig(**text_sizes()),
        image_token_index=VOCABULARY[IMAGE],
        image_seq_length=TOKENS_PER_TILE + 1,
        vision_feature_select_strategy="full",
        vision_feature_layer=[-1, -2],
    )


def _cls_processor() -> Any:
    processor: Any = tiny_processor("llava")
    processor.vision_feature_select_strategy = "full"
    return processor


def _cls_inputs(dtype: torch.dtype) -> BatchFeature:
    rows = [[image] for image in noise_images(SIZES[:3])]
    return ragged(_cls_processor(), prompts(PROMPT, IMAGE, (1, 1, 1)), rows).to(dtype)


def pixtral_vision() -> PixtralVisionConfig:
    """A tower of four layers that takes images of any size."""
    return PixtralVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=70,
        patch_size=PATCH,
    )


def _pixtral_config() -> LlavaConfig:
    vocabulary = vocabulary_with(PIXTRAL_TOKENS)
    return LlavaConfig(
        vision_config=pixtral_vision(),
        text_config=LlamaConfig(**text_sizes(len(vocabulary))),
        image_token_index=vocabulary["[IMG]"],
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )


FAMILIES = [
    TinyFamily(
        name="llava",
        model_type="llava",
        config=partial(tiny_config, "llava"),
        processor=partial(tiny_processor, "llava"),
        prompt=PROMPT,
        inputs=_inputs,
    ),
    TinyFamily(
        name="llava-images",
        model_type="llava",
        config=partial(tiny_config, "llava"),
        processor=partial(tiny_processor, "llava"),
        prompt=PROMPT,
        inputs=partial(_inputs, counts=ROWS),
    ),
    TinyFamily(
        name="llava-cls",
        model_type="llava",
        config=_cls_config,
        processor=_cls_processor,
        prompt=PROMPT,
        inputs=_cls_inputs,
    ),
    TinyFamily(
        name="llava-pixtral",
        model_type="llava",
        config=_pixtral_config,
        processor=None,  # PixtralProcessor's file imports torchvision
        prompt=PIXTRAL_PROMPT,
        inputs=pixtral_inputs,
    ),
]
