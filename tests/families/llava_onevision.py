"""`llava_onevision`: any-resolution images, several images, and videos of pooled frames."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from transformers import BatchFeature

from tests.families import TinyFamily, noise_images, ragged
from tests.families.llava import PROMPT, ROWS, prompts
from tests.families.llava_next_video import mixed_rows, video_rows
from tests.tiny import IMAGE, tiny_config, tiny_processor

SIZES = ((56, 56), (80, 30), (28, 40), (19, 60))
FRAMES = 4
TOKENS = FRAMES * 4 + 1  # 4 x 4 patches of a frame, pooled two by two, and one newline


def _images(dtype: torch.dtype, counts: Sequence[int]) -> BatchFeature:
    images = iter(noise_images(SIZES))
    rows = [[next(images) for _ in range(count)] for count in counts]
    texts = prompts(PROMPT, IMAGE, counts)
    return ragged(tiny_processor("llava_onevision"), texts, rows).to(dtype)


def _mixed(dtype: torch.dtype) -> BatchFeature:
    processor = tiny_processor("llava_onevision")
    return mixed_rows(processor, SIZES[:3], dtype, frames=FRAMES, tokens=TOKENS)


FAMILIES = [
    TinyFamily(
        name=name,
        model_type="llava_onevision",
        config=partial(tiny_config, "llava_onevision"),
        processor=partial(tiny_processor, "llava_onevision"),
        prompt=PROMPT,
        inputs=inputs,
    )
    for name, inputs in (
        ("llava_onevision", partial(_images, counts=(1, 1, 1))),
        ("llava_onevision-images", partial(_images, counts=ROWS)),
        ("llava_onevision-video", partial(video_rows, frames=FRAMES, tokens=TOKENS)),
        ("llava_onevision-image+video", _mixed),
    )
]
