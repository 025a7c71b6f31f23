"""A small calibration set of noise images, for tests of everything that measures."""

from __future__ import annotations

import torch

from tests.tiny import noise_image
from vflowopt_search.calibration.samples import CalibrationSet, Sample, fingerprint

PROMPTS = ("how many", "What color is the cat?", "describe the picture on the left", "is there")


def small_set(count: int = 7, seed: int = 1) -> CalibrationSet:
    """Samples with prompts of different length and images of different shape."""
    generator = torch.Generator().manual_seed(seed)
    samples = tuple(
        Sample(
            id=str(i),
            prompt=PROMPTS[i % len(PROMPTS)],
            images=(noise_image((30 + i * 3, 60 - i * 2), generator),),
            answer="two" if i % 2 else "red",
            group="odd" if i % 2 else "even",
        )
        for i in range(count)
    )
    return CalibrationSet(name="small", samples=samples, sha256=fingerprint(samples))
