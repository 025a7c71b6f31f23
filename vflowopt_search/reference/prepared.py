"""Samples as the decoder gets them: token ids, projected vision features, importance signals.

Whatever does not depend on a strategy is computed once and reused by every trial.

Shape suffixes: S = prompt length, N = visual tokens of an image, D = features, T = tiles,
P = patches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vflowopt_search.adapters.base import Adapter
from vflowopt_search.adapters.feeding import ENCODED
from vflowopt_search.importance.signals import ImageGeometry, VisualSignals, by_run

MAX_TOKENS_PER_BATCH = 16384
MAX_BATCH = 32


@dataclass(frozen=True, eq=False)
class Visuals:
    """Images, or videos, after the vision encoder; of one sample or of a batch.

    Attributes:
        images: their geometry, in prompt order.
        features: projected features of each, (N, D) or as `Adapter.features` says, in the
            model's dtype.
        entropy: patch entropy of each in bits, (tiles, P); None if pixels cannot be restored.
        extras: what else the model's positions are made of, one row per image or video.
    """

    images: tuple[ImageGeometry, ...]
    features: tuple[Tensor, ...]
    entropy: tuple[Tensor, ...] | None
    extras: Mapping[str, Tensor]

    def only(self, chosen: Sequence[int]) -> Visuals:
        """Some of the images."""
        return Visuals(
            images=tuple(self.images[i] for i in chosen),
            features=tuple(self.features[i] for i in chosen),
            entropy=None if self.entropy is None else tuple(self.entropy[i] for i in chosen),
            extras={name: rows[list(chosen)] for name, rows in self.extras.items()},
        )

    def with_encoding_of(self, other: Visuals) -> Visuals:
        """These with the very features and entropy of others that show the same."""
        return replace(self, features=other.features, entropy=other.entropy)


@dataclass(frozen=True, eq=False)
class PreparedSample:
    """One sample after the processor and the vision encoder.

    Attributes:
        input_ids: token ids of the prompt, no padding, shape (S,), on the CPU.
        visuals: kind ("image", "video") to what was encoded; a kind it has none of is absent.
        token_inputs: other inputs of the model with one value per token, (S,).
    """

    input_ids: Tensor
    visuals: Mapping[str, Visuals]
    token_inputs: Mapping[str, Tensor]

    @property
    def images(self) -> tuple[ImageGeometry, ...]:
        """Geometry of its images, then of its videos."""
        return tuple(image for visuals in self.visuals.values() for image in visuals.images)

    @property
    def features(self) -> tuple[Tensor, ...]:
        """Features of its images, then of its videos."""
        return tuple(one for visuals in self.visuals.values() for one in visuals.features)

    @property
    def entropy(self) -> tuple[Tensor, ...] | None:
        """Entropy of its images, then of its videos; None if pixels cannot be restored."""
        parts = [visuals.entropy for visuals in self.visuals.values()]
        known = [part for part in parts if part is not None]
        return tuple(one for part in known for one in part) if len(known) == len(parts) else None

    @property
    def num_tiles(self) -> int:
        """Tiles of all its images and videos."""
        return sum(image.num_tiles for image in self.images)


def batches(count: int, size: int) -> Iterator[range]:
    """Consecutive index ranges of at most `size`."""
    for start in range(0, count, size):
        yield range(start, min(start + size, count))


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

        `adapters.feeding` hands it to the model. The features object is made anew each time: beam
        search changes it in place.
        """
        chosen = [self.samples[i] for i in indices]
        device = self.adapter.backbone.device
        batch: dict[str, Any] = {
            "input_ids": left_padded([s.input_ids for s in chosen], self.pad_token_id),
            "attention_mask": left_padded([torch.ones_like(s.input_ids) for s in chosen], 0),
        }
        for name in chosen[0].token_inputs:
            batch[name] = left_padded([s.token_inputs[name] for s in chosen], 0)
        encoded = {}
        for kind in ("image", "video"):
            mine = [s.visuals[kind] for s in chosen if kind in s.visuals]
            if not mine:
                continue
            features = _moved([one for visuals in mine for one in visuals.features], device)
            encoded[kind] = self.adapter.encoded(features, kind)
            for name in mine[0].extras:
                batch[name] = torch.cat([visuals.extras[name] for visuals in mine])
        moved = {name: value.to(device) for name, value in batch.items()}
        return moved | ({ENCODED: encoded} if encoded else {})

    def signals(self, indices: Sequence[int]) -> dict[str, VisualSignals]:
        """Geometry and entropy of a batch by kind, images in prompt order; no attention yet.

        The entropy is on the model's device, where the attention that it is added to will be.
        """
        device = self.adapter.backbone.device
        found = {}
        for kind in ("image", "video"):
            chosen = [self.samples[i].visuals[kind] for i in indices if self.has(i, kind)]
            images = tuple(image for visuals in chosen for image in visuals.images)
            parts = _moved([one for visuals in chosen for one in visuals.entropy or ()], device)
            entropy = by_run(images, parts) if len(parts) == len(images) else None
            if images:
                found[kind] = VisualSignals(images=images, entropy=entropy)
        return found

    def has(self, index: int, kind: str) -> bool:
        """Whether a sample has images, or videos."""
        return kind in self.samples[index].visuals


def _moved(features: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """On a device; a tensor that several rows share is moved once."""
    moved = {id(one): one for one in features}
    moved = {key: one.to(device, non_blocking=True) for key, one in moved.items()}
    return [moved[id(one)] for one in features]


def left_padded(rows: Sequence[Tensor], value: int) -> Tensor:
    """Vectors of any length as one matrix whose rows end together, (rows, longest)."""
    return torch.nn.utils.rnn.pad_sequence(
        list(rows), batch_first=True, padding_value=value, padding_side="left"
    )


def pad_token_of(processor: Any) -> int:
    """The padding token of a processor's tokenizer; its value never reaches a kept token."""
    pad = processor.tokenizer.pad_token_id
    return int(pad if pad is not None else processor.tokenizer.eos_token_id or 0)
