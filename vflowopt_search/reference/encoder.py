"""Run the vision encoder on batches of samples and split what it gives by sample.

Shape suffixes: N = visual tokens of an image, D = features, T = tiles of a run, P = patches.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature

from vflowopt_search.adapters.base import Adapter
from vflowopt_search.adapters.feeding import encode_visuals, encoder_inputs
from vflowopt_search.calibration.encoding import encode
from vflowopt_search.calibration.samples import Sample, images_sha256
from vflowopt_search.importance.signals import ImageGeometry, by_image
from vflowopt_search.pruning.scoring import assign_images
from vflowopt_search.pruning.vision import VisionRecorder
from vflowopt_search.reference.halving import Room, in_halves
from vflowopt_search.reference.prepared import (
    PreparedSample,
    PreparedSet,
    Visuals,
    batches,
    pad_token_of,
)
from vflowopt_search.strategy import PixelScale

Progress = Callable[[int, int], None]
"""Called with (samples done, samples in total)."""


def shifted(progress: Progress | None, number: int, of: int) -> Progress | None:
    """The progress of part `number` of some parts of equal size, as that of all."""
    if progress is None:
        return None
    return lambda done, total: progress(number * total + done, of * total)


Encoded = tuple[tuple[Tensor, ...], tuple[Tensor, ...] | None]
"""Features and patch entropy of some images, in order."""

TOKEN_INPUTS = ("token_type_ids", "mm_token_type_ids")
"""Inputs with one value per token, which positions and masks are made of."""

GRID_INPUTS = {
    "image": ("image_grid_thw",),
    "video": ("video_grid_thw", "second_per_grid_ts", "video_second_per_grid"),
}
"""Inputs with one row per image or video that positions are made of, besides the features."""


def kinds_of(adapter: Adapter, inputs: Mapping[str, Any]) -> dict[str, int]:
    """The kinds of visual input in a batch, and the placeholder of each."""
    tokens = {"image": adapter.image_token_id, "video": adapter.video_token_id}
    return {
        kind: token
        for kind, token in tokens.items()
        if token is not None and encoder_inputs(adapter, inputs, kind)
    }


def encode_vision(
    adapter: Adapter, inputs: BatchFeature, pixels: PixelScale | None
) -> list[PreparedSample]:
    """Run the vision encoder on one batch and split what it gives by sample."""
    found: dict[str, Visuals] = {}
    for kind in kinds_of(adapter, inputs):
        recorder = VisionRecorder(adapter, layer=None, pixels=pixels)
        with torch.inference_mode(), recorder.recording():
            output = encode_visuals(adapter, encoder_inputs(adapter, inputs, kind), kind)
        [signals] = recorder.calls.values()
        flat_ND = torch.cat(adapter.features(output)).cpu()
        sizes = [len(image.grid) for image in signals.images]
        entropy = signals.entropy
        parts = None if entropy is None else by_image(signals.images, entropy)
        found[kind] = Visuals(
            images=signals.images,
            features=torch.split(flat_ND, sizes),
            entropy=None if parts is None else tuple(part.cpu() for part in parts),
            extras=_extras(inputs, kind),
        )
    return split_by_sample(adapter, inputs, found)


def geometry(adapter: Adapter, inputs: BatchFeature, kind: str) -> tuple[ImageGeometry, ...]:
    """Geometry of a batch's images or videos, without encoding them."""
    call = encoder_inputs(adapter, inputs, kind)
    return adapter.images(call) if kind == "image" else adapter.videos(call)


def with_features(
    adapter: Adapter,
    inputs: BatchFeature,
    fetch: Callable[[str, Sequence[ImageGeometry]], Encoded],
) -> list[PreparedSample]:
    """A batch whose images were encoded before.

    Args:
        adapter: the model.
        inputs: the batch.
        fetch: gives features and entropy of a batch's images or videos, in order.
    """
    found = {}
    for kind in kinds_of(adapter, inputs):
        images = geometry(adapter, inputs, kind)
        features, entropy = fetch(kind, images)
        found[kind] = Visuals(images, features, entropy, _extras(inputs, kind))
    return split_by_sample(adapter, inputs, found)


def split_by_sample(
    adapter: Adapter, inputs: BatchFeature, found: Mapping[str, Visuals]
) -> list[PreparedSample]:
    """Give each row of a batch its token ids and its share of what was encoded."""
    rows: list[dict[str, Visuals]] = [{} for _ in inputs["input_ids"]]
    for kind, token in kinds_of(adapter, inputs).items():
        counts = (inputs["input_ids"] == token).sum(1).tolist()
        sizes = [len(image.grid) for image in found[kind].images]
        for row, mine in zip(rows, assign_images(counts, sizes), strict=True):
            if mine:
                row[kind] = found[kind].only(mine)
    samples = []
    takes = inspect.signature(adapter.model.forward).parameters
    per_token = [name for name in TOKEN_INPUTS if name in inputs and name in takes]
    for place, visuals in enumerate(rows):
        real_S = inputs["attention_mask"][place].bool()
        samples.append(
            PreparedSample(
                input_ids=inputs["input_ids"][place][real_S].cpu(),
                visuals=visuals,
                token_inputs={name: inputs[name][place][real_S].cpu() for name in per_token},
            )
        )
    return samples


def _extras(inputs: BatchFeature, kind: str) -> dict[str, Tensor]:
    return {
        name: torch.as_tensor(inputs[name]).cpu() for name in GRID_INPUTS[kind] if name in inputs
    }


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
    """Encode all samples, batch by batch; images that come again go through the encoder once.

    Raises:
        ModelError: a single sample does not fit in memory.
    """
    encode_batch = partial(encode_vision, adapter, pixels=pixels)
    return assembled(adapter, processor, samples, encode_batch, batch_size, progress)


def assembled(
    adapter: Adapter,
    processor: Any,
    samples: Sequence[Sample],
    encode_batch: Callable[[BatchFeature], Sequence[PreparedSample]],
    batch_size: int,
    progress: Progress | None = None,
) -> PreparedSet:
    """All samples, of which those that show new images are encoded, in their order.

    Args:
        adapter: the model.
        processor: its processor.
        samples: all of them.
        encode_batch: the processor's output for some to what was encoded of each.
        batch_size: samples to a batch, if they fit.
        progress: called with (samples done, samples in total).

    Raises:
        ModelError: a single sample does not fit in memory.
    """
    first_alike = first_with_same_images(samples)
    new = [i for i, first in enumerate(first_alike) if i == first]
    again = [i for i, first in enumerate(first_alike) if i != first]
    ready: dict[int, PreparedSample] = {}

    def inputs_of(indices: Sequence[int]) -> BatchFeature:
        chosen = [samples[i] for i in indices]
        return next(encoded_batches(adapter, processor, chosen, len(chosen)))

    def encoded(indices: Sequence[int]) -> Sequence[PreparedSample]:
        return encode_batch(inputs_of(indices))

    def alike(indices: Sequence[int]) -> Sequence[PreparedSample]:
        twins = [ready[first_alike[i]] for i in indices]
        return with_features(adapter, inputs_of(indices), partial(_of_twins, twins))

    room = Room()
    for some, compute in ((new, encoded), (again, alike)):
        for indices, made in in_halves(some, batch_size, compute, room, number=int):
            ready.update(zip(indices, made, strict=True))
            if progress is not None:
                progress(len(ready), len(samples))
    return PreparedSet(
        adapter,
        [ready[i] for i in range(len(samples))],
        pad_token_id=pad_token_of(processor),
        first_alike=first_alike,
    )


def _of_twins(
    twins: Sequence[PreparedSample], kind: str, images: Sequence[ImageGeometry]
) -> Encoded:
    """Features and entropy of samples that show the very same images."""
    visuals = [twin.visuals[kind] for twin in twins if kind in twin.visuals]
    features = tuple(one for each in visuals for one in each.features)
    entropy = tuple(one for each in visuals for one in each.entropy or ())
    return features, entropy if len(entropy) == len(features) else None


def first_with_same_images(samples: Sequence[Sample]) -> list[int]:
    """For each sample the index of the first one with the very same images and videos."""
    first: dict[str, int] = {}
    return [first.setdefault(images_sha256(sample), i) for i, sample in enumerate(samples)]
