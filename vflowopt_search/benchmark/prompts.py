"""The prompts of a benchmark: one image and a question, by a processor or put together here.

Shape suffixes: B = rows, S = tokens of a prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vflowopt_search.adapters.base import Adapter
from vflowopt_search.benchmark.pixels import FROM_CONFIG
from vflowopt_search.calibration.encoding import encode
from vflowopt_search.calibration.samples import Sample
from vflowopt_search.errors import BenchmarkError
from vflowopt_search.pruning.inputs import placeholder_ids

Size = tuple[int, int]
"""Width and height, in pixels."""

QUESTION = "what is in the image ?"
SEED = 0
"""Of the text drawn at random, and of the first noise image; the next has the next one."""
TEXT_TOKENS = 32
"""Of a prompt that is put together without a tokenizer."""


@dataclass(frozen=True)
class Prompts:
    """Makes batches of prompts.

    Attributes:
        batch: makes the model's inputs for a batch size and a resolution.
        origin: where prompts come from, in words.
    """

    batch: Callable[[int, Size], dict[str, Any]]
    origin: str


def noise_image(size: Size, seed: int) -> Image.Image:
    """A picture of coarse and fine noise: every patch is its own."""
    width, height = size
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (1, 3, 8, 8), generator=generator).float()
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    noisy = smooth + 20 * torch.randn(smooth.shape, generator=generator)
    pixels = noisy.clamp(0, 255).to(torch.uint8)[0].permute(1, 2, 0).contiguous()
    return Image.fromarray(pixels.numpy())


def by_processor(
    adapter: Adapter, processor: Any, *, question: str = QUESTION, image: Image.Image | None = None
) -> Prompts:
    """Prompts as users give them: noise pictures, or one picture brought to each resolution."""

    def batch(rows: int, size: Size) -> dict[str, Any]:
        pictures = (
            noise_image(size, SEED + row) if image is None else image.resize(size)
            for row in range(rows)
        )
        samples = [Sample(str(n), question, (picture,)) for n, picture in enumerate(pictures)]
        return _placed(adapter, encode(processor, samples))

    shown = "noise images" if image is None else "the image given"
    return Prompts(batch, f"{shown} and {question!r} through {type(processor).__name__}")


def without_processor(adapter: Adapter) -> Prompts:
    """Prompts for a model of which only the configuration is known.

    Noise images go through the family's own image processor, set up by the configuration; the
    text is ids drawn at random, for what it says does not matter to the clock.

    Raises:
        BenchmarkError: the family's inputs cannot be made so.
    """
    make = FROM_CONFIG.get(adapter.model_type)
    if make is None:
        raise BenchmarkError(
            "there is no processor beside the configuration, and without one prompts are made for "
            f"{', '.join(FROM_CONFIG)} only, not for {adapter.model_type}; put the processor's "
            "files beside config.json, or name a processor with --model"
        )
    pixels_of = make(adapter.config)

    def batch(rows: int, size: Size) -> dict[str, Any]:
        pixels = pixels_of([noise_image(size, SEED + row) for row in range(rows)])
        # all prompts are alike; a family may count the tiles of one as images of their own
        tokens = sum(len(image.grid) for image in adapter.images(pixels)) // rows
        ids_BS = _ids(adapter, tokens).expand(rows, -1).contiguous()
        words = {"input_ids": ids_BS, "attention_mask": torch.ones_like(ids_BS)}
        if "image_grid_thw" in pixels:  # 3-D positions want to know what is an image
            words["mm_token_type_ids"] = (ids_BS == adapter.image_token_id).int()
        return _placed(adapter, words | pixels)

    return Prompts(batch, "noise images and random text, without a tokenizer")


def _ids(adapter: Adapter, visual_tokens: int) -> Tensor:
    """Text around the placeholders of one image."""
    vocabulary = adapter.backbone.config.vocab_size
    placeholders = placeholder_ids(adapter)
    words = torch.tensor([i for i in range(min(vocabulary, 1000)) if i not in placeholders])
    generator = torch.Generator().manual_seed(SEED)
    text = words[torch.randint(len(words), (TEXT_TOKENS,), generator=generator)]
    image = torch.full((visual_tokens,), adapter.image_token_id)
    return torch.cat([text[: TEXT_TOKENS // 2], image, text[TEXT_TOKENS // 2 :]])


def _placed(adapter: Adapter, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """On the model's device, numbers with a fraction in its precision."""
    device, dtype = adapter.backbone.device, adapter.backbone.dtype

    def place(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(device, dtype) if value.is_floating_point() else value.to(device)

    return {name: place(value) for name, value in inputs.items()}
