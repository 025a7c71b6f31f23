"""Samples to what a model takes: prompt, images and padding by the model's own processor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vflowopt_search.calibration.samples import Sample
from vflowopt_search.errors import CalibrationError, ModelError

if TYPE_CHECKING:
    import torch
    from transformers import BatchFeature, ProcessorMixin


def encode(
    processor: ProcessorMixin, samples: Sequence[Sample], device: str | torch.device = "cpu"
) -> BatchFeature:
    """One batch on `device`, ready for the model's `forward` or `generate`, padded on the left.

    Raises `CalibrationError` without samples, `ModelError` when the processor places no images.
    """
    if not samples:
        raise CalibrationError("there are no samples to encode; give at least one")
    texts = [prompt_text(processor, sample) for sample in samples]
    takes: Any = processor
    begin = getattr(takes.tokenizer, "bos_token", None)
    batch: BatchFeature = takes(
        images=[list(sample.images) for sample in samples],
        text=texts,
        padding=True,
        padding_side="left",
        # some chat templates write the first token themselves
        add_special_tokens=not (begin and texts[0].startswith(begin)),
        return_tensors="pt",
    )
    return batch.to(device)


def prompt_text(processor: ProcessorMixin, sample: Sample) -> str:
    """The whole prompt as text: chat template if there is one, images before the question."""
    if not processor.chat_template:
        return _image_token(processor) * len(sample.images) + "\n" + sample.prompt
    prompt = _render(processor, sample.prompt, len(sample.images))
    if sample.images and prompt == _render(processor, sample.prompt, 0):
        raise ModelError(
            f"the chat template of {type(processor).__name__} leaves images out; give the "
            f"processor a template that places them"
        )
    return prompt


def _render(processor: ProcessorMixin, prompt: str, num_images: int) -> str:
    content = [*({"type": "image"} for _ in range(num_images)), {"type": "text", "text": prompt}]
    chat: Any = processor
    rendered: str = chat.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    return rendered


def _image_token(processor: ProcessorMixin) -> str:
    token = getattr(processor, "image_token", None)
    if not isinstance(token, str):
        raise ModelError(
            f"{type(processor).__name__} has neither a chat template nor an image token; give it "
            f"a chat template"
        )
    return token
