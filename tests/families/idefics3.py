"""Idefics3 and SmolVLM: each tile of an image is a run of 16 tokens, text tokens between runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from transformers import BatchFeature, LlamaConfig, PreTrainedConfig, ProcessorMixin
from transformers.models.idefics3.configuration_idefics3 import Idefics3Config, Idefics3VisionConfig
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.smolvlm.configuration_smolvlm import SmolVLMConfig, SmolVLMVisionConfig

from tests.families import QUESTIONS, TinyFamily, noise_images, ragged
from tests.tiny import (
    CHAT_TEMPLATE,
    IMAGE,
    MEAN,
    STD,
    text_sizes,
    tiny_tokenizer,
    vocabulary_with,
)

TILE, PATCH = 56, 7  # pixels
EXTRA = (
    "<fake_token_around_image>",
    "<end_of_utterance>",
    "<global-img>",
    *(f"<row_{row}_col_{col}>" for row in (1, 2) for col in (1, 2)),
)
PROMPT = f"USER: {IMAGE} {{question}} ASSISTANT:"
_Processor: Any = Idefics3Processor  # transformers annotates it in part only


def _config(whole: Any, vision: Any) -> PreTrainedConfig:
    vocabulary = vocabulary_with(EXTRA)
    config: PreTrainedConfig = whole(
        vision_config=vision(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=TILE,
            patch_size=PATCH,
        ),
        text_config=LlamaConfig(**text_sizes(len(vocabulary))),
        image_token_id=vocabulary[IMAGE],
        scale_factor=2,
    )
    return config


def _processor(splitting: bool) -> ProcessorMixin:
    image_processor = Idefics3ImageProcessorPil(
        size={"longest_edge": 2 * TILE},
        max_image_size={"longest_edge": TILE},
        do_image_splitting=splitting,
        image_mean=MEAN,
        image_std=STD,
    )
    processor: ProcessorMixin = _Processor(
        image_processor=image_processor,
        tokenizer=tiny_tokenizer(EXTRA),
        image_seq_len=(TILE // PATCH) ** 2 // 4,
        chat_template=CHAT_TEMPLATE,
    )
    return processor


def _inputs(
    sizes: Sequence[Sequence[tuple[int, int]]], splitting: bool, dtype: torch.dtype
) -> BatchFeature:
    prompts = [
        PROMPT.replace(IMAGE, IMAGE * len(row)).format(question=question)
        for row, question in zip(sizes, QUESTIONS, strict=True)
    ]
    images = iter(noise_images([size for row in sizes for size in row]))
    rows = [[next(images) for _ in row] for row in sizes]
    return ragged(_processor(splitting), prompts, rows).to(dtype)


def _video(dtype: torch.dtype) -> BatchFeature:
    """Frames are written as whole images behind their times; every tile's mask is full.

    A batch's videos are padded to the frames of the longest one.
    """
    counts = (2, 1, 3)  # frames
    prompts = [
        PROMPT.replace(IMAGE, " ".join(f"{second}: {IMAGE}" for second in range(count))).format(
            question=question
        )
        for count, question in zip(counts, QUESTIONS, strict=True)
    ]
    frames = iter(noise_images([(TILE, TILE)] * sum(counts), seed=6))
    rows = [[next(frames) for _ in range(count)] for count in counts]
    batch = ragged(_processor(splitting=False), prompts, rows)
    batch["pixel_attention_mask"] = torch.ones_like(batch["pixel_attention_mask"])
    cast: BatchFeature = batch.to(dtype)
    return cast


def _variant(
    model_type: str, ending: str, inputs: Callable[[torch.dtype], BatchFeature]
) -> TinyFamily:
    return TinyFamily(
        name=f"{model_type}{ending}",
        model_type=model_type,
        config=lambda: _config(*CONFIGS[model_type]),
        # SmolVLM's own processor refuses to be built without num2words and, for its video slot,
        # torchvision; Idefics3's writes the same prompts and pixels
        processor=(lambda: _processor(ending == "")) if model_type == "idefics3" else None,
        prompt=PROMPT,
        inputs=inputs,
    )


_CUT = [[(100, 40)], [(90, 90)], [(30, 80)]]
_SEVERAL = [[(60, 50)], [(50, 99), (40, 40)], [(9, 9)]]
CONFIGS: dict[str, tuple[Any, Any]] = {
    "idefics3": (Idefics3Config, Idefics3VisionConfig),
    "smolvlm": (SmolVLMConfig, SmolVLMVisionConfig),
}
FAMILIES = [
    variant
    for model_type in CONFIGS
    for variant in (
        _variant(model_type, "", partial(_inputs, _CUT, True)),
        _variant(model_type, "-images", partial(_inputs, _SEVERAL, False)),
    )
] + [_variant("smolvlm", "-video", _video)]
