"""InternVL: an image is cut into square tiles, each of 64 patches and 16 tokens here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import BatchFeature, PreTrainedConfig, ProcessorMixin, Qwen2Config
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.internvl.configuration_internvl import InternVLConfig, InternVLVisionConfig
from transformers.models.internvl.processing_internvl import InternVLProcessor

from tests.families import QUESTIONS, TinyFamily, noise_images, ragged
from tests.tiny import (
    CHAT_TEMPLATE,
    MEAN,
    STD,
    VIDEO,
    text_sizes,
    tiny_tokenizer,
    vocabulary_with,
)
from vflowopt_search.adapters.processors import without_video

TILE, PATCH = 56, 7  # pixels
CONTEXT = "<IMG_CONTEXT>"
NAMED = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": CONTEXT,
    "video_token": VIDEO,
}
EXTRA = ("<img>", "</img>", CONTEXT)
PROMPT = f"USER: {CONTEXT} {{question}} ASSISTANT:"


def _config() -> PreTrainedConfig:
    vocabulary = vocabulary_with(EXTRA)
    vision = InternVLVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=TILE,
        patch_size=PATCH,
    )
    return InternVLConfig(
        vision_config=vision,
        text_config=Qwen2Config(**text_sizes(len(vocabulary))),
        image_token_id=vocabulary[CONTEXT],
        image_seq_length=(TILE // PATCH) ** 2 // 4,
    )


def _processor() -> ProcessorMixin:
    image_processor = GotOcr2ImageProcessorPil(
        size={"height": TILE, "width": TILE},
        crop_to_patches=True,
        max_patches=2,
        image_mean=MEAN,
        image_std=STD,
    )
    tokenizer: Any = tiny_tokenizer(EXTRA)
    tokenizer._set_model_specific_special_tokens(special_tokens=NAMED)
    return without_video(InternVLProcessor)(
        image_processor=image_processor,
        tokenizer=tokenizer,
        image_seq_length=(TILE // PATCH) ** 2 // 4,
        chat_template=CHAT_TEMPLATE.replace("<image>", CONTEXT),
    )


def _lively(model: Any) -> None:
    """Layer scales near one: drawn like biases, they would silence the vision layers.

    The head is the embeddings, so that these must be small for logits of a usual size.
    """
    for name, parameter in model.named_parameters():
        if name.endswith(("lambda_1", "lambda_2")):
            parameter.data += 1
    embeddings = model.get_input_embeddings().weight
    embeddings.data /= embeddings.shape[1] ** 0.5


def _inputs(sizes: Sequence[Sequence[tuple[int, int]]], dtype: torch.dtype) -> BatchFeature:
    prompts = [
        PROMPT.replace(CONTEXT, CONTEXT * len(row)).format(question=question)
        for row, question in zip(sizes, QUESTIONS, strict=True)
    ]
    images = iter(noise_images([size for row in sizes for size in row]))
    batch = ragged(_processor(), prompts, [[next(images) for _ in row] for row in sizes])
    return batch.to(dtype)


def _video(dtype: torch.dtype) -> BatchFeature:
    """By hand: video processors need torchvision. Frames are tiles, one run of tokens each."""
    counts = (2, 1, 3)  # frames
    run = "<img>" + CONTEXT * ((TILE // PATCH) ** 2 // 4) + "</img>"
    texts = [
        PROMPT.replace(CONTEXT, " ".join([run] * count)).format(question=question)
        for count, question in zip(counts, QUESTIONS, strict=True)
    ]
    made: Any = _processor()
    frames = noise_images([(TILE, TILE)] * sum(counts), seed=6)
    pixels = made.image_processor(frames, crop_to_patches=False, return_tensors="pt")
    batch: Any = made.tokenizer(texts, padding=True, return_tensors="pt")
    chosen = {name: batch[name] for name in ("input_ids", "attention_mask")}
    return BatchFeature(chosen | {"pixel_values": pixels["pixel_values"]}).to(dtype)


FAMILIES = [
    TinyFamily(
        name="internvl",
        model_type="internvl",
        config=_config,
        processor=_processor,
        prompt=PROMPT,
        inputs=lambda dtype: _inputs([[(60, 50)], [(120, 40)], [(30, 90)]], dtype),
        tweak=_lively,
    ),
    TinyFamily(
        name="internvl-images",
        model_type="internvl",
        config=_config,
        processor=_processor,
        prompt=PROMPT,
        inputs=lambda dtype: _inputs([[(60, 50)], [(50, 120), (40, 40)], [(90, 90)]], dtype),
        tweak=_lively,
    ),
    TinyFamily(
        name="internvl-video",
        model_type="internvl",
        config=_config,
        processor=_processor,
        prompt=PROMPT,
        inputs=_video,
        tweak=_lively,
    ),
]
