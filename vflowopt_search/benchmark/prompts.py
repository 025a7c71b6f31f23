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
from vflowopt_search.calibration.encoding import encode
from vflowopt_search.calibration.samples import Sample
from vflowopt_search.errors import BenchmarkError
from vflowopt_search.pruning.inputs import placeholder_ids

Size = tuple[int, int]
"""Width and height, in pixels."""

QUESTION = "what is in the image ?"
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
            noise_image(size, seed) if image is None else image.resize(size) for seed in range(rows)
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
    make = _PIXELS.get(adapter.model_type)
    if make is None:
        raise BenchmarkError(
            f"there is no processor beside the configuration, and without one prompts are made for "
            f"{', '.join(sorted(_PIXELS))} only, not for {adapter.model_type}; put the processor's "
            "files beside config.json, or name a processor with --model"
        )
    pixels_of = make(adapter.config)

    def batch(rows: int, size: Size) -> dict[str, Any]:
        pixels = pixels_of([noise_image(size, seed) for seed in range(rows)])
        counts = [len(image.grid) for image in adapter.images(pixels)]
        ids_BS = torch.stack([_ids(adapter, count) for count in counts])
        mask = {"input_ids": ids_BS, "attention_mask": torch.ones_like(ids_BS)}
        return _placed(adapter, mask | pixels)

    return Prompts(batch, "noise images and random text, without a tokenizer")


def _ids(adapter: Adapter, visual_tokens: int) -> Tensor:
    """Text around the placeholders of one image."""
    vocabulary = adapter.backbone.config.vocab_size
    placeholders = placeholder_ids(adapter)
    words = torch.tensor([i for i in range(min(vocabulary, 1000)) if i not in placeholders])
    generator = torch.Generator().manual_seed(0)
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


Pixels = Callable[[list[Image.Image]], dict[str, Any]]


def _any_resolution(config: Any, processor_class: Any) -> Pixels:
    """Base view and tiles, as many as the configuration's pinpoints give."""
    side = config.vision_config.image_size
    square = {"height": side, "width": side}
    processor = processor_class(
        size=square,
        crop_size=square,
        image_grid_pinpoints=config.image_grid_pinpoints,
        do_center_crop=False,
    )
    return lambda images: dict(processor(images=images, return_tensors="pt"))


def _llava_next(config: Any) -> Pixels:
    from transformers import LlavaNextImageProcessorPil

    return _any_resolution(config, LlavaNextImageProcessorPil)


def _llava_onevision(config: Any) -> Pixels:
    from transformers import LlavaOnevisionImageProcessorPil

    return _any_resolution(config, LlavaOnevisionImageProcessorPil)


def _llava(config: Any) -> Pixels:
    """One square tile, whatever the resolution."""
    from transformers import CLIPImageProcessorPil

    side = config.vision_config.image_size
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    return lambda images: dict(processor(images=images, return_tensors="pt"))


_PIXELS: dict[str, Callable[[Any], Pixels]] = {
    "llava": _llava,
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
}
