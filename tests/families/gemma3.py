"""Gemma 3: 16 pooled tokens an image, which see each other; sliding layers between full ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import BatchFeature, PreTrainedConfig, ProcessorMixin, SiglipVisionConfig
from transformers.models.gemma3.configuration_gemma3 import Gemma3Config, Gemma3TextConfig
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.gemma3.processing_gemma3 import Gemma3Processor

from tests.families import QUESTIONS, TinyFamily, noise_images, ragged
from tests.tiny import CHAT_TEMPLATE, MEAN, STD, text_sizes, tiny_tokenizer, vocabulary_with

SIDE, PATCH, TOKENS = 56, 7, 16  # pixels, pixels, tokens of an image
START, END, SOFT = "<start_of_image>", "<end_of_image>", "<image_soft_token>"
EXTRA = (START, END, SOFT)
PROMPT = f"USER: {START} {{question}} ASSISTANT:"
WIDE, NARROW = 512, 10  # sliding windows: wider than any prompt, narrower than most
CROPS = {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 16, "pan_and_scan_max_num_crops": 2}
_Processor: Any = Gemma3Processor  # transformers annotates it in part only


def _config(window: int) -> PreTrainedConfig:
    vocabulary = vocabulary_with(EXTRA)
    vision = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    text = Gemma3TextConfig(
        **text_sizes(len(vocabulary)),
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=window,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2,
    )
    return Gemma3Config(
        vision_config=vision,
        text_config=text,
        mm_tokens_per_image=TOKENS,
        boi_token_index=vocabulary[START],
        eoi_token_index=vocabulary[END],
        image_token_index=vocabulary[SOFT],
    )


def calm(model: Any) -> None:
    """Gemma adds one to the scale of a norm and multiplies embeddings by the root of the width.

    Drawn as for other families, its attention would be all but hard and its logits huge.
    """
    for module in model.modules():
        if "RMSNorm" in type(module).__name__:
            module.weight.data -= 1
    embeddings = model.get_input_embeddings().weight
    embeddings.data /= embeddings.shape[1] ** 0.5


def _processor() -> ProcessorMixin:
    image_processor = Gemma3ImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, image_mean=MEAN, image_std=STD
    )
    tokenizer: Any = tiny_tokenizer(EXTRA)
    tokenizer._set_model_specific_special_tokens(
        special_tokens={"boi_token": START, "eoi_token": END, "image_token": SOFT}
    )
    processor: ProcessorMixin = _Processor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        image_seq_length=TOKENS,
        chat_template=CHAT_TEMPLATE.replace("<image>", START),
    )
    return processor


def _inputs(
    sizes: Sequence[Sequence[tuple[int, int]]], crops: bool, dtype: torch.dtype
) -> BatchFeature:
    prompts = [
        PROMPT.replace(START, START * len(row)).format(question=question)
        for row, question in zip(sizes, QUESTIONS, strict=True)
    ]
    images = iter(noise_images([size for row in sizes for size in row]))
    rows = [[next(images) for _ in row] for row in sizes]
    if not crops:
        return ragged(_processor(), prompts, rows).to(dtype)
    processor: Any = _processor()
    batch: BatchFeature = processor(
        text=prompts, images=rows, padding=True, padding_side="left", return_tensors="pt", **CROPS
    )
    return batch.to(dtype)


def _variant(
    name: str, sizes: Sequence[Sequence[tuple[int, int]]], window: int, crops: bool = False
) -> TinyFamily:
    return TinyFamily(
        name=name,
        model_type="gemma3",
        config=lambda: _config(window),
        processor=_processor,
        prompt=PROMPT,
        inputs=lambda dtype: _inputs(sizes, crops, dtype),
        tweak=calm,
    )


_ONE = [[(56, 56)], [(80, 30)], [(30, 90)]]
FAMILIES = [
    _variant("gemma3", _ONE, WIDE),
    _variant("gemma3-images", [[(60, 50)], [(50, 99), (40, 40)], [(9, 9)]], WIDE),
    _variant("gemma3-crops", _ONE, WIDE, crops=True),
    _variant("gemma3-window", _ONE, NARROW),
]
