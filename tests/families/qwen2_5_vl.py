"""Qwen2.5-VL: most vision layers attend within windows of 2 x 2 tokens, the others within a frame.

EXAONE 4.5 has its vision encoder, with fewer keys than queries, and plain positions.

The encoder puts its patches in window order; its features come back in the order of the prompt.
"""

from __future__ import annotations

import torch
from transformers import (
    BatchFeature,
    Exaone4_5_Config,
    Exaone4_5_Processor,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessorPil,
)

from tests.families import TinyFamily
from tests.families.mrope import (
    image_options,
    images_and_videos,
    several_images,
    single_images,
    sizes_of_text,
    untyped,
    videos,
)
from tests.families.qwen2_vl import IMAGE, MARKUP, PROMPT, VIDEO, token_options
from tests.tiny import PATCH, text_sizes, tiny_tokenizer, vocabulary_with
from vflowopt_search.adapters.processors import without_video

WINDOW = 2 * 2 * PATCH  # pixels: two tokens of two patches
VISION = {
    "depth": 4,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 4,
    "patch_size": PATCH,
    "out_hidden_size": 32,
    "window_size": WINDOW,
    "fullatt_block_indexes": [1, 2],
}


def _config() -> Qwen2_5_VLConfig:
    return Qwen2_5_VLConfig(
        text_config=sizes_of_text(MARKUP), vision_config=VISION, **token_options()
    )


def _exaone_config() -> Exaone4_5_Config:
    ids = MARKUP.token_ids()
    text = text_sizes(len(vocabulary_with(MARKUP.special)))
    return Exaone4_5_Config(
        # every third layer has no rotary positions, the others have a window of 12 tokens
        text_config=text
        | {"model_type": "exaone4", "sliding_window": 12, "sliding_window_pattern": 3},
        vision_config=VISION | {"num_key_value_heads": 2},
        image_token_id=ids[IMAGE],
        video_token_id=ids[VIDEO],
    )


def _processor() -> ProcessorMixin:
    return without_video(Qwen2_5_VLProcessor)(
        image_processor=Qwen2VLImageProcessorPil(**image_options()),
        tokenizer=tiny_tokenizer(MARKUP.special),
        chat_template=MARKUP.chat_template(),
    )


def _exaone_processor() -> ProcessorMixin:
    return without_video(Exaone4_5_Processor)(
        image_processor=Qwen2VLImageProcessorPil(**image_options()),
        tokenizer=tiny_tokenizer(MARKUP.special),
        chat_template=MARKUP.chat_template(),
    )


def _timed_videos(dtype: torch.dtype) -> BatchFeature:
    """Videos whose frame pairs are half a second, one second and two seconds apart."""
    batch = videos(MARKUP, _processor)(dtype)
    batch["second_per_grid_ts"] = torch.tensor([0.5, 1.0, 2.0])
    return batch


FAMILIES = [
    TinyFamily(
        name=f"qwen2_5_vl{suffix}",
        model_type="qwen2_5_vl",
        config=_config,
        inputs=inputs,
        processor=_processor,
        prompt=PROMPT,
        tweak=MARKUP.unsaid,
    )
    for suffix, inputs in (
        ("", single_images(MARKUP, _processor)),
        ("-images", several_images(MARKUP, _processor)),
        ("-video", _timed_videos),
        ("-images+video", images_and_videos(MARKUP, _processor)),
    )
] + [
    TinyFamily(
        name=f"exaone4_5{suffix}",
        model_type="exaone4_5",
        config=_exaone_config,
        inputs=untyped(make(MARKUP, _exaone_processor)),
        processor=_exaone_processor,
        prompt=PROMPT,
        tweak=MARKUP.unsaid,
        fp64=1e-5,  # it counts padding among the positions, and rotates in fp32
    )
    for suffix, make in (("", images_and_videos), ("-video", videos))
]
