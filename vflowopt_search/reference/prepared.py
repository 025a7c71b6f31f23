"""Samples as the decoder gets them: token ids, projected vision features, importance signals.

Whatever does not depend on a strategy is computed once here and reused by every trial.

Shape suffixes: S = prompt length, N = visual tokens of an image, D = features, T = tiles,
P = patches, Q = tokens of a tile in the vision encoder, H = heads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vflowopt_search.adapters.base import Adapter
from vflowopt_search.calibration.encoding import encode
from vflowopt_search.calibration.samples import Sample
from vflowopt_search.importance.signals import ImageGeometry, VisualSignals
from vflowopt_search.pruning.scoring import assign_images
from vflowopt_search.pruning.vision import VisionRecorder
from vflowopt_search.strategy import PixelScale

Progress = Callable[[int, int], None]
"""Called with (samples done, samples in total)."""

TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
MAX_TOKENS_PER_BATCH = 16384
MAX_BATCH = 32


@dataclass(frozen=True, eq=False)
class PreparedSample:
    """One sample after the processor and the vision encoder.

    Attributes:
        input_ids: token ids of the prompt, no padding, shape (S,), on the CPU.
        images: geometry of its images, in prompt order.
        features: projected features of each image, (N, D), on the CPU in the model's dtype.
        entropy_TP: patch entropy of its tiles in bits; None if pixels cannot be restored.
    """

    input_ids: Tensor
    images: tuple[ImageGeometry, ...]
    features: tuple[Tensor, ...]
    entropy_TP: Tensor | None

    @property
    def num_tiles(self) -> int:
        """Tiles of all its images."""
        return sum(image.num_tiles for image in self.images)


def batches(count: int, size: int) -> Iterator[range]:
    """Consecutive index ranges of at most `size`."""
    for start in range(0, count, size):
        yield range(start, min(start + size, count))


def encode_vision(
    adapter: Adapter, inputs: BatchFeature, pixels: PixelScale | None
) -> list[PreparedSample]:
    """Run the vision encoder on one batch and split what it gives by sample."""
    recorder = VisionRecorder(adapter, layer=None, pixels=pixels)
    with torch.inference_mode(), recorder.recording():
        output = adapter.base.get_image_features(**vision_inputs(inputs), return_dict=True)
    signals = recorder.call
    assert signals is not None
    features = [one.cpu() for one in output.pooler_output]
    entropy_TP = None if signals.entropy_TP is None else signals.entropy_TP.cpu()
    return split_by_sample(adapter, inputs, signals.images, features, entropy_TP)


def split_by_sample(
    adapter: Adapter,
    inputs: BatchFeature,
    images: Sequence[ImageGeometry],
    features: Sequence[Tensor],
    entropy_TP: Tensor | None,
) -> list[PreparedSample]:
    """Give each row of a batch its token ids and its images' geometry, features and entropy."""
    visual_B = (inputs["input_ids"] == adapter.image_token_id).sum(1).tolist()
    rows = assign_images(visual_B, [len(image.grid) for image in images])
    tiles = torch.tensor([0, *(image.num_tiles for image in images)]).cumsum(0).tolist()
    samples = []
    for row, mine in enumerate(rows):
        entropy = [] if entropy_TP is None else [entropy_TP[tiles[i] : tiles[i + 1]] for i in mine]
        samples.append(
            PreparedSample(
                input_ids=inputs["input_ids"][row][inputs["attention_mask"][row].bool()].cpu(),
                images=tuple(images[i] for i in mine),
                features=tuple(features[i] for i in mine),
                entropy_TP=torch.cat(entropy) if entropy else None,
            )
        )
    return samples


def vision_inputs(inputs: BatchFeature) -> dict[str, Any]:
    """What of a processor's output goes to the vision encoder."""
    return {name: value for name, value in inputs.items() if name not in TEXT_INPUTS}


class PreparedSet:
    """All samples of a calibration or evaluation set, ready to be batched in any order."""

    def __init__(
        self,
        adapter: Adapter,
        samples: Sequence[PreparedSample],
        *,
        pad_token_id: int,
        first_alike: Sequence[int] | None = None,
    ) -> None:
        """All samples.

        Args:
            adapter: the model.
            samples: in the order of the set.
            pad_token_id: fills up shorter prompts.
            first_alike: for each sample the first one with the same images; itself when None.
        """
        self.adapter = adapter
        self.samples = list(samples)
        self.pad_token_id = pad_token_id
        self.first_alike = list(range(len(samples)) if first_alike is None else first_alike)

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(len(sample.input_ids) for sample in self.samples)

    def batch_size(self) -> int:
        """Samples to a batch so that about `MAX_TOKENS_PER_BATCH` unpruned tokens are in it."""
        return max(1, min(MAX_BATCH, MAX_TOKENS_PER_BATCH // self.longest))

    def inputs(self, indices: Sequence[int]) -> dict[str, Any]:
        """A left-padded batch for the model's forward or `generate`, features in place of pixels.

        The features object is made anew each time: beam search changes it in place.
        """
        chosen = [self.samples[i] for i in indices]
        device = self.adapter.backbone.device
        longest = max(len(sample.input_ids) for sample in chosen)
        input_ids = torch.full((len(chosen), longest), self.pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        for row, sample in enumerate(chosen):
            input_ids[row, longest - len(sample.input_ids) :] = sample.input_ids
            attention_mask[row, longest - len(sample.input_ids) :] = 1
        features = [one.to(device) for sample in chosen for one in sample.features]
        encoded = BaseModelOutputWithPooling()
        encoded["pooler_output"] = features
        return {
            "input_ids": input_ids.to(device),
            "attention_mask": attention_mask.to(device),
            "mm_encoder_outputs": {"image": encoded},
        }

    def signals(self, indices: Sequence[int]) -> VisualSignals:
        """Geometry and entropy of a batch, images in prompt order; no attention yet."""
        chosen = [self.samples[i] for i in indices]
        images = tuple(image for sample in chosen for image in sample.images)
        entropies = [s.entropy_TP for s in chosen if s.entropy_TP is not None]
        entropy_TP = torch.cat(entropies) if len(entropies) == len(chosen) else None
        return VisualSignals(images=images, entropy_TP=entropy_TP)


def pad_token_of(processor: Any) -> int:
    """The padding token of a processor's tokenizer; its value never reaches a kept token."""
    pad = processor.tokenizer.pad_token_id
    return int(pad if pad is not None else processor.tokenizer.eos_token_id or 0)


def encoded_batches(
    adapter: Adapter, processor: Any, samples: Sequence[Sample], size: int
) -> Iterator[BatchFeature]:
    """The processor's output for consecutive batches, on the model's device and in its dtype."""
    backbone = adapter.backbone
    for chunk in batches(len(samples), size):
        inputs = encode(processor, [samples[i] for i in chunk], device=backbone.device)
        yield inputs.to(backbone.dtype)


def prepare(
    adapter: Adapter,
    processor: Any,
    samples: Sequence[Sample],
    pixels: PixelScale | None,
    *,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> PreparedSet:
    """Encode all samples, batch by batch; images that come again go through the encoder once."""
    first_alike = first_with_same_images(samples)
    new = [i for i, first in enumerate(first_alike) if i == first]
    again = [i for i, first in enumerate(first_alike) if i != first]
    ready: dict[int, PreparedSample] = {}

    def file(indices: Sequence[int], fresh: Sequence[PreparedSample]) -> None:
        ready.update(zip(indices, fresh, strict=True))
        if progress is not None:
            progress(len(ready), len(samples))

    for indices, inputs in _encoded(adapter, processor, samples, new, batch_size):
        file(indices, encode_vision(adapter, inputs, pixels))
    for indices, inputs in _encoded(adapter, processor, samples, again, batch_size):
        known = [ready[first_alike[i]] for i in indices]
        features = [one for sample in known for one in sample.features]
        entropies = [s.entropy_TP for s in known if s.entropy_TP is not None]
        images = adapter.images(vision_inputs(inputs))
        entropy_TP = torch.cat(entropies) if entropies else None
        file(indices, split_by_sample(adapter, inputs, images, features, entropy_TP))
    return PreparedSet(
        adapter,
        [ready[i] for i in range(len(samples))],
        pad_token_id=pad_token_of(processor),
        first_alike=first_alike,
    )


def _encoded(
    adapter: Adapter, processor: Any, samples: Sequence[Sample], indices: Sequence[int], size: int
) -> Iterator[tuple[list[int], BatchFeature]]:
    """Some samples in batches, each with its indices."""
    chosen = [samples[i] for i in indices]
    for chunk, inputs in zip(
        batches(len(chosen), size), encoded_batches(adapter, processor, chosen, size), strict=True
    ):
        yield [indices[i] for i in chunk], inputs


def first_with_same_images(samples: Sequence[Sample]) -> list[int]:
    """For each sample the index of the first one with the very same images."""
    first: dict[str, int] = {}
    return [first.setdefault(_images_sha256(sample), i) for i, sample in enumerate(samples)]


def _images_sha256(sample: Sample) -> str:
    digest = hashlib.sha256()
    for image in sample.images:
        digest.update(repr((image.mode, image.size)).encode())
        digest.update(image.tobytes())
    return digest.hexdigest()
