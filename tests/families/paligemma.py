"""PaliGemma: image and question see each other whole; PaliGemma 2 has sliding layers."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    BatchFeature,
    Gemma2Config,
    GemmaConfig,
    PreTrainedConfig,
    ProcessorMixin,
    SiglipVisionConfig,
)
from transformers.models.paligemma.configuration_paligemma import PaliGemmaConfig
from transformers.models.paligemma.processing_paligemma import EXTRA_TOKENS, PaliGemmaProcessor
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tests.families import QUESTIONS, TinyFamily, noise_images, ragged
from tests.families.gemma3 import calm
from tests.tiny import CHAT_TEMPLATE, IMAGE, MEAN, STD, VOCABULARY, text_sizes, tiny_tokenizer

SIDE, PATCH = 35, 7  # pixels
PROMPT = f"{IMAGE}USER: {{question}} ASSISTANT:"
_Processor: Any = PaliGemmaProcessor  # transformers annotates it in part only


def _config(text_config: Any, **options: Any) -> PreTrainedConfig:
    vision = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    # the processor adds words for places and shapes to the tokenizer
    size = len(VOCABULARY) + len(EXTRA_TOKENS)
    return PaliGemmaConfig(
        vision_config=vision,
        text_config=text_config(**text_sizes(size), head_dim=8, **options),
        image_token_index=VOCABULARY[IMAGE],
        vocab_size=size,
        projection_dim=32,
        hidden_size=32,
    )


def second_config(window: int) -> PreTrainedConfig:
    """PaliGemma 2; no variant of its own, for transformers runs it with eager attention alone."""
    kinds = ["sliding_attention", "full_attention"] * 3
    return _config(Gemma2Config, query_pre_attn_scalar=8, sliding_window=window, layer_types=kinds)


def _processor() -> ProcessorMixin:
    image_processor: Any = SiglipImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, image_mean=MEAN, image_std=STD
    )
    image_processor.image_seq_length = (SIDE // PATCH) ** 2
    processor: ProcessorMixin = _Processor(
        image_processor=image_processor,
        tokenizer=tiny_tokenizer(),
        chat_template=CHAT_TEMPLATE,
    )
    return processor


def _inputs(sizes: Sequence[Sequence[tuple[int, int]]], dtype: torch.dtype) -> BatchFeature:
    prompts = [
        PROMPT.replace(IMAGE, IMAGE * len(row)).format(question=question)
        for row, question in zip(sizes, QUESTIONS, strict=True)
    ]
    images = iter(noise_images([size for row in sizes for size in row]))
    rows = [[next(images) for _ in row] for row in sizes]
    with warnings.catch_warnings():  # transformers makes an array of a tensor in an old way
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        batch = ragged(_processor(), prompts, rows)
    batch.pop("labels", None)  # without an answer they ask for a loss over nothing
    return batch.to(dtype)


def _variant(name: str, config: Any, sizes: Sequence[Sequence[tuple[int, int]]]) -> TinyFamily:
    return TinyFamily(
        name=name,
        model_type="paligemma",
        config=config,
        processor=_processor,
        prompt=PROMPT,
        inputs=lambda dtype: _inputs(sizes, dtype),
        tweak=calm,
        new_token_type=1,  # what follows the prefix is read causally
    )


_ONE = [[(56, 56)], [(80, 30)], [(30, 90)]]
FAMILIES = [
    _variant("paligemma", lambda: _config(GemmaConfig), _ONE),
    _variant(
        "paligemma-images",
        lambda: _config(GemmaConfig),
        [[(60, 50)], [(50, 99), (40, 40)], [(9, 9)]],
    ),
]
