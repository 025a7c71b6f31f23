"""Attention of the vision encoder, computed once per image and layer for all trials.

Shape suffixes: T = tiles, H = heads, Q = tokens of a tile in the vision encoder, D = head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from vflowopt_search.adapters.base import Adapter
from vflowopt_search.adapters.feeding import encoder_inputs
from vflowopt_search.calibration.samples import Sample, images_sha256
from vflowopt_search.importance.context import ContextAttention, ContextMap, context_map
from vflowopt_search.importance.signals import (
    ImageGeometry,
    ProjectedAttention,
    by_image,
    runs_of,
)
from vflowopt_search.pruning.probe import attention_probe
from vflowopt_search.pruning.tiles import SeenAttention
from vflowopt_search.pruning.vision import KINDS, attention_by_run
from vflowopt_search.reference.encoder import encoded_batches, kinds_of
from vflowopt_search.reference.prepared import PreparedSet, batches
from vflowopt_search.reference.shelf import Shelf, Tensors

Maps = dict[str, tuple[ContextMap, ...]]
"""Kind to one map per image of one sample."""

SCORES_AT_ONCE = 2**26  # head x query x key products held at a time while a map is averaged
SEEN_BYTES = 2**30  # queries, keys and maps held while the encoder runs
MOST_SAMPLES = 16


class AttentionMaps:
    """Context maps by (vision layer, images), on a shelf.

    A missing map costs one run of the vision encoder. Where the maps of all layers of all samples
    fit on the shelf, one run records them all.
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
        self._digests: dict[int, str] = {}

    def attention(
        self, layer: int, indices: Sequence[int]
    ) -> dict[str, tuple[ContextAttention, ...]]:
        """The attention of `layer` over all tiles of a batch of samples, by kind and run."""
        indices = [self.prepared.first_alike[i] for i in indices]
        stored = {i: self._stored(layer, i) for i in dict.fromkeys(indices)}
        found = {i: maps for i, maps in stored.items() if maps is not None}
        missing = sorted(set(indices) - set(found))
        layers = self._layers_to_record(layer)
        for chunk in batches(len(missing), self._samples_at_once(len(layers))):
            found |= self._compute(layer, layers, [missing[i] for i in chunk])
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
        maps: Maps = {}
        for kind, visuals in self.prepared.samples[index].visuals.items():
            parts = []
            for number, image in enumerate(visuals.images):
                received = tensors.get(f"{kind}.{number}.received")
                from_first = tensors.get(f"{kind}.{number}.from_first")
                shape = (image.num_tiles, image.tile_patches)
                if received is None or from_first is None or received.shape != shape:
                    return None
                parts.append(ContextMap(received, from_first))
            maps[kind] = tuple(parts)
        return maps

    def _compute(self, layer: int, layers: Sequence[int], indices: list[int]) -> dict[int, Maps]:
        """Run the vision encoder on some samples; returns their maps of `layer`."""
        chosen = [self.samples[i] for i in indices]
        [inputs] = encoded_batches(self.adapter, self.processor, chosen, len(chosen))
        fresh: dict[int, Maps] = {i: {} for i in indices}
        others: dict[tuple[int, int], Maps] = {}
        for kind in kinds_of(self.adapter, inputs):
            mine = [i for i in indices if self.prepared.has(i, kind)]
            images = [one for i in mine for one in self._images(i, kind)]
            for each, runs in self._seen(layers, inputs, kind, images).items():
                parts = iter(self._context_maps(images, runs))
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

    def _context_maps(
        self, images: Sequence[ImageGeometry], runs: Sequence[ProjectedAttention]
    ) -> list[ContextMap]:
        """One context map per image."""
        prefix, suffix = self.adapter.num_prefix_tokens, self.adapter.num_suffix_tokens
        with torch.inference_mode():
            maps = by_image(images, [head_mean_map(run) for run in runs])
            return [context_map(map_TQQ, prefix, suffix) for map_TQQ in maps]

    def _layers_to_record(self, layer: int) -> list[int]:
        """All layers that may score if everything fits, else the one asked for."""
        layers = list(self.adapter.vision_layers)
        everything = sum(
            4 * image.num_tiles * image.tile_patches * (image.tile_patches + 1)
            for index in set(self.prepared.first_alike)
            for image in self.prepared.samples[index].images
        )
        fits = everything * len(layers) <= self.shelf.room()
        return layers if fits else [layer]

    def _samples_at_once(self, num_layers: int) -> int:
        """So many that queries, keys and maps of so many layers stay within `SEEN_BYTES`."""
        weights = next(p for p in self.adapter.vision_attentions[0].parameters() if p.ndim > 1)
        of_patch = 2 * weights.shape[-1] * weights.element_size()
        most = max(
            sum(i.num_tiles * i.tile_patches * (of_patch + 4 * i.tile_patches) for i in s.images)
            for s in self.prepared.samples
        )
        return max(1, min(MOST_SAMPLES, SEEN_BYTES // max(1, most * num_layers)))


def _packed(maps: Maps) -> dict[str, Tensor]:
    """Maps as named tensors."""
    return {
        f"{kind}.{number}.{name}": tensor
        for kind, parts in maps.items()
        for number, part in enumerate(parts)
        for name, tensor in (("received", part.received_TP), ("from_first", part.from_first_TKP))
    }


class _SeeInto:
    """Files what a probe sees in a list."""

    def __init__(self, seen: list[SeenAttention]) -> None:
        self.seen = seen

    def __call__(self, query: Tensor, key: Tensor, scale: float) -> None:
        self.seen.append(SeenAttention(query, key, scale))


def head_mean_map(attention: ProjectedAttention) -> Tensor:
    """Mean over heads of softmax(q k^T * scale), fp32 (T, Q, Q), queries before keys, on the CPU.

    A few tiles at a time, so that the maps of all heads are never held together.
    """
    query_THQD, key_THQD = attention.query_THQD.float(), attention.key_THQD.float()
    # grouped-query attention: several query heads share the keys of one
    key_THQD = key_THQD.repeat_interleave(query_THQD.shape[1] // key_THQD.shape[1], dim=1)
    heads, size = query_THQD.shape[1], query_THQD.shape[2]
    step = max(1, SCORES_AT_ONCE // (heads * size * size))
    parts = []
    for query, key in zip(torch.split(query_THQD, step), torch.split(key_THQD, step), strict=True):
        logits_THQQ = query @ key.transpose(-1, -2) * attention.scale
        parts.append(logits_THQQ.softmax(-1).mean(1).cpu())
    return torch.cat(parts)
