"""Prompts for a self-check: a noise image and a question, by the model's processor or without one.

Shape suffixes: S = prompt, N = visual tokens.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import BatchFeature

from vflowopt_search.adapters.base import Adapter
from vflowopt_search.adapters.feeding import encode_visuals, encoder_inputs
from vflowopt_search.errors import ProcessorNeededError
from vflowopt_search.memory_errors import is_out_of_memory
from vflowopt_search.selfcheck.masking import TOKEN_TYPES, answer_type

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 336  # pixels; most processors make one tile of it
QUESTIONS = ("What is in this image?", "How many objects are in this image, and of what color?")
PIXELS = "pixel_values"
IDS = {"input_ids", "attention_mask"}

_log = logging.getLogger(__name__)

# what a model raises that is given other inputs than its own kind takes, or is built otherwise
BREAKDOWNS = (TypeError, ValueError, KeyError, AttributeError, RuntimeError, IndexError)


@dataclass(frozen=True)
class Prompts:
    """What the model is asked.

    Attributes:
        batch: the inputs that most checks run on.
        each: two prompts of different length, one by one; empty where a batch was given.
        together: the same two in one left-padded batch; None where a batch was given.
        told: where they came from, in words.
    """

    batch: Mapping[str, Any]
    each: Sequence[Mapping[str, Any]]
    together: Mapping[str, Any] | None
    told: str


def make_prompts(adapter: Adapter, source: Any) -> Prompts:
    """Prompts from a processor, from inputs that are there already, or from the configuration.

    Args:
        adapter: the model that will be asked.
        source: its processor, a batch that it takes, or None.

    Raises:
        VFlowOptError: the processor refuses, or without one no inputs can be made.
    """
    if isinstance(source, Mapping):
        return Prompts(_placed(adapter, source), (), None, "the inputs given")
    if source is not None:
        from vflowopt_search.calibration.encoding import encode
        from vflowopt_search.calibration.samples import Sample

        samples = [Sample(f"self-check {q!r}", q, (noise_image(),)) for q in QUESTIONS]
        each = [_placed(adapter, encode(source, [sample])) for sample in samples]
        together = _placed(adapter, encode(source, samples))
        return Prompts(each[0], each, together, f"a noise image through {type(source).__name__}")
    try:
        each = [_without_processor(adapter, len(question.split())) for question in QUESTIONS]
    except BREAKDOWNS as error:
        if is_out_of_memory(error):
            raise
        _log.debug("inputs of a %s model cannot be made up", adapter.model_type, exc_info=error)
        raise ProcessorNeededError(
            f"this {adapter.model_type} model cannot be checked without its processor, for its "
            "inputs are not pixels alone; call "
            "vflowopt_search.selfcheck.check.check_model(model, processor) first"
        ) from error
    told = "pixels of noise and arbitrary words, for there is no processor"
    return Prompts(each[0], each, _joined(each), told)


def noise_image() -> Image:
    """A square of noise that is coarse in one half and fine in the other, the same every time."""
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 7, 7, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(SIDE, SIDE), mode="bilinear")[0]
    grain = torch.rand(3, SIDE, SIDE, generator=generator) * torch.linspace(0, 1, SIDE)
    pixels_HWC = ((smooth + grain) * 127).to(torch.uint8).permute(1, 2, 0).contiguous()
    return Image.fromarray(pixels_HWC.numpy())


def _placed(adapter: Adapter, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """On the model's device, pixels in its dtype, without labels and types that it cannot take."""
    takes = inspect.signature(adapter.model.forward).parameters
    unwanted = {"labels", *(name for name in TOKEN_TYPES if name not in takes)}
    taken = {name: value for name, value in inputs.items() if name not in unwanted}
    backbone = adapter.backbone
    return dict(BatchFeature(taken).to(device=backbone.device, dtype=backbone.dtype))


def _without_processor(adapter: Adapter, num_words: int) -> dict[str, Any]:
    """One prompt of noise pixels and arbitrary words, unpadded."""
    vision = adapter.config.vision_config
    side = vision.image_size
    height, width = side if isinstance(side, list | tuple) else (side, side)
    generator = torch.Generator().manual_seed(0)
    shape = (1, getattr(vision, "num_channels", 3), height, width)
    made = {PIXELS: torch.randn(shape, generator=generator)}
    with torch.no_grad():
        call = encoder_inputs(adapter, _placed(adapter, made), "image")
        encoded = encode_visuals(adapter, call, "image")
    num_tokens = sum(len(image.grid) for image in adapter.images_of(made, encoded))
    words_S = _words(adapter, 2 + num_words)
    place_N = torch.full((num_tokens,), adapter.image_token_id)
    made["input_ids"] = torch.cat([words_S[:2], place_N, words_S[2:]])[None]
    made["attention_mask"] = torch.ones_like(made["input_ids"])
    is_image = (made["input_ids"] == adapter.image_token_id).long()
    made |= {name: is_image * (1 - answer_type(adapter, name)) for name in TOKEN_TYPES}
    return _placed(adapter, made)


def _words(adapter: Adapter, count: int) -> Tensor:
    """Token ids that mean nothing special."""
    special = special_tokens(adapter)
    size = int(adapter.backbone.config.vocab_size)
    usual = [token for token in range(size // 3, size) if token not in special]
    return torch.tensor([usual[7 * i % len(usual)] for i in range(count)])


def special_tokens(adapter: Adapter) -> set[int]:
    """Ids that a configuration names: placeholders, marks around images, padding."""
    text = getattr(adapter.config, "get_text_config", lambda: adapter.config)()
    named = {**text.to_dict(), **adapter.config.to_dict()}
    ids = {v for k, v in named.items() if k.endswith(("_token_id", "_token_index"))}
    return {token for token in ids if isinstance(token, int) and token >= 0}


def _joined(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Prompts in one batch, left-padded."""
    longest = max(one["input_ids"].shape[1] for one in each)
    batch: dict[str, Any] = {PIXELS: torch.cat([one[PIXELS] for one in each])}
    for name in (*IDS, *TOKEN_TYPES):
        rows = [one[name] for one in each if name in one]
        if not rows:
            continue
        padded = [torch.nn.functional.pad(row, (longest - row.shape[1], 0)) for row in rows]
        batch[name] = torch.cat(padded)
    return batch
