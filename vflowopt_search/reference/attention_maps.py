"""Attention of the vision encoder, computed once per image and layer for all trials.

Of tiles so large that the maps would be larger, queries and keys are held (`stored_attention`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vflowopt_search.adapters.base import Adapter
from vflowopt_search.adapters.feeding import encoder_inputs
from vflowopt_search.calibration.samples import Sample, images_sha256
from vflowopt_search.importance.context import ContextAttention, StoredAttention
from vflowopt_search.importance.signals import ImageGeometry, ProjectedAttention, runs_of
from vflowopt_search.pruning.probe import attention_probe
from vflowopt_search.pruning.tiles import SeenAttention
from vflowopt_search.pruning.vision import KINDS, attention_by_run
from vflowopt_search.reference.encoder import encoded_batches, kinds_of
from vflowopt_search.reference.halving import Room, in_halves
from vflowopt_search.reference.offered_layers import offered_layers
from vflowopt_search.reference.prepared import PreparedSet
from vflowopt_search.reference.shelf import Shelf, Tensors
from vflowopt_search.reference.stored_attention import (
    packed,
    stored_by_image,
    stored_bytes,
    unpacked,
)

Maps = dict[str, tuple[StoredAttention, ...]]
"""Kind to what is stored of each image of one sample."""

SEEN_BYTES = 2**30  # queries, keys and maps held while the encoder runs
MOST_SAMPLES = 16


class AttentionMaps:
    """Stored attention by (vision layer, images), on a shelf.

    What is missing costs one run of the vision encoder. It records all layers that are offered to
    the search at once, where there is room for all samples.

    Attributes:
        offered: the layers that a search should choose among.
    """

    def __init__(
        self,
        adapter: Adapter,
        processor: Any,
        samples: Sequence[Sample],
        prepared: PreparedSet,
        shelf: Shelf,
    ) -> None:
        """Serve the maps of some samples.

        Args:
            adapter: the model.
            processor: its processor.
            samples: in the order of `prepared`.
            prepared: the same samples, encoded.
            shelf: keeps the maps; belongs to this model, processor and dtype.
        """
        self.adapter, self.processor, self.samples = adapter, processor, samples
        self.prepared, self.shelf = prepared, shelf
        self._bytes_of_patch = bytes_of_patch(adapter)
        self.offered = offered_layers(adapter.vision_layers, self._layer_bytes(), shelf.room())
        self._digests: dict[int, str] = {}
        self._room = Room()  # not the trials': what the encoder cannot hold, the decoder may

    def attention(
        self, layer: int, indices: Sequence[int]
    ) -> dict[str, tuple[ContextAttention, ...]]:
        """The attention of `layer` over all tiles of a batch of samples, by kind and run.

        Raises:
            OutOfMemoryError: attention of a single sample does not fit in memory.
        """
        indices = [self.prepared.first_alike[i] for i in indices]
        stored = {i: self._stored(layer, i) for i in dict.fromkeys(indices)}
        found = {i: maps for i, maps in stored.items() if maps is not None}
        missing = sorted(set(indices) - set(found))
        layers = self._layers_to_record(layer)
        at_once = self._samples_at_once(len(layers))
        for _, fresh in in_halves(
            missing, at_once, partial(self._compute, layer, layers), self._room, number=int
        ):
            found |= fresh
        device = self.adapter.backbone.device
        attention = {}
        for kind in KINDS:
            mine = [i for i in indices if self.prepared.has(i, kind)]
            parts = iter([part for i in mine for part in found[i][kind]])
            runs = runs_of([one for i in mine for one in self._images(i, kind)])
            attention[kind] = tuple(
                ContextAttention([next(parts) for _ in run], device) for run in runs
            )
        return attention

    def _images(self, index: int, kind: str) -> tuple[ImageGeometry, ...]:
        return self.prepared.samples[index].visuals[kind].images

    def _name(self, layer: int, index: int) -> str:
        """What the maps of one layer and one sample's images are called on the shelf."""
        if index not in self._digests:
            self._digests[index] = images_sha256(self.samples[index])[:32]
        return f"{layer}/{self._digests[index]}"

    def _stored(self, layer: int, index: int) -> Maps | None:
        """The maps on the shelf; None where there are none, or none of these images."""
        tensors = self.shelf.get(self._name(layer, index))
        return None if tensors is None else self._unpacked(index, tensors)

    def _unpacked(self, index: int, tensors: Tensors) -> Maps | None:
        around = self.adapter.num_prefix_tokens, self.adapter.num_suffix_tokens
        maps: Maps = {}
        for kind, visuals in self.prepared.samples[index].visuals.items():
            parts = []
            for number, image in enumerate(visuals.images):
                part = unpacked(f"{kind}.{number}", tensors, image, *around)
                if part is None:
                    return None
                parts.append(part)
            maps[kind] = tuple(parts)
        return maps

    def _compute(
        self, layer: int, layers: Sequence[int], indices: Sequence[int]
    ) -> dict[int, Maps]:
        """Run the vision encoder on some samples; returns their maps of `layer`."""
        chosen = [self.samples[i] for i in indices]
        [inputs] = encoded_batches(self.adapter, self.processor, chosen, len(chosen))
        fresh: dict[int, Maps] = {i: {} for i in indices}
        others: dict[tuple[int, int], Maps] = {}
        for kind in kinds_of(self.adapter, inputs):
            mine = [i for i in indices if self.prepared.has(i, kind)]
            images = [one for i in mine for one in self._images(i, kind)]
            for each, runs in self._seen(layers, inputs, kind, images).items():
                with torch.inference_mode():
                    parts = iter(stored_by_image(images, runs))
                for i in mine:
                    maps = fresh[i] if each == layer else others.setdefault((each, i), {})
                    maps[kind] = tuple(next(parts) for _ in self._images(i, kind))
        for i, maps in fresh.items():
            others[layer, i] = maps
        for (each, i), maps in others.items():
            self.shelf.put(self._name(each, i), _packed(maps))
        return fresh

    def _seen(
        self, layers: Sequence[int], inputs: Any, kind: str, images: Sequence[ImageGeometry]
    ) -> dict[int, tuple[ProjectedAttention, ...]]:
        """Queries and keys of some layers in one run of the encoder, by runs of the images."""
        call = encoder_inputs(self.adapter, inputs, kind)
        seen: dict[int, list[SeenAttention]] = {each: [] for each in layers}
        with ExitStack() as stack, torch.inference_mode():
            for each in layers:
                attention = self.adapter.vision_attentions[each]
                stack.enter_context(attention_probe(attention, _SeeInto(seen[each])))
            getattr(self.adapter.base, KINDS[kind])(**call, return_dict=True)
        return {
            each: attention_by_run(self.adapter, seen.pop(each), images, call) for each in layers
        }

    def _layers_to_record(self, layer: int) -> list[int]:
        """All layers that may score if all fit together, else the one asked for."""
        layers = self.offered.layers
        fits = self._layer_bytes() * len(layers) <= self.shelf.room()
        return list(layers) if fits and layer in layers else [layer]

    def _layer_bytes(self) -> float:
        """What the shelf holds of one layer when it has all images."""
        return sum(
            image.num_tiles * stored_bytes(image.tile_patches, self._bytes_of_patch)
            for index in set(self.prepared.first_alike)
            for image in self.prepared.samples[index].images
        )

    def _samples_at_once(self, num_layers: int) -> int:
        """So many that queries, keys and maps of so many layers stay within `SEEN_BYTES`."""
        of_patch = self._bytes_of_patch
        most = max(
            sum(
                i.num_tiles * (i.tile_patches * of_patch + stored_bytes(i.tile_patches, of_patch))
                for i in sample.images
            )
            for sample in self.prepared.samples
        )
        return max(1, min(MOST_SAMPLES, int(SEEN_BYTES // max(1, most * num_layers))))


def bytes_of_patch(adapter: Adapter) -> int:
    """Queries and keys of a patch, where they are as wide as what they are made of."""
    every = (p for attention in adapter.vision_attentions for p in attention.parameters())
    weights = next((p for p in every if p.ndim > 1), None)
    return 0 if weights is None else 2 * weights.shape[-1] * weights.element_size()


def _packed(maps: Maps) -> dict[str, Tensor]:
    """Maps as named tensors."""
    tensors: dict[str, Tensor] = {}
    for kind, parts in maps.items():
        for number, part in enumerate(parts):
            tensors |= packed(f"{kind}.{number}", part)
    return tensors


class _SeeInto:
    """Files what a probe sees in a list."""

    def __init__(self, seen: list[SeenAttention]) -> None:
        self.seen = seen

    def __call__(self, query: Tensor, key: Tensor, scale: float) -> None:
        self.seen.append(SeenAttention(query, key, scale))
