"""Attention maps of the vision encoder, computed once per sample and layer, kept in bounds.

Shape suffixes: T = tiles, H = heads, Q = tokens of a tile in the vision encoder, D = head width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from vflowopt_search.adapters.base import Adapter
from vflowopt_search.adapters.feeding import encoder_inputs
from vflowopt_search.calibration.samples import Sample
from vflowopt_search.importance.signals import (
    ImageGeometry,
    MappedAttention,
    ProjectedAttention,
    by_image,
    by_run,
)
from vflowopt_search.pruning.probe import attention_probe
from vflowopt_search.pruning.tiles import SeenAttention
from vflowopt_search.pruning.vision import KINDS, attention_by_run
from vflowopt_search.reference.encoder import encoded_batches, kinds_of
from vflowopt_search.reference.prepared import PreparedSet, batches

Maps = dict[str, tuple[Tensor, ...]]
"""Kind to one map (tiles, Q, Q) per image of one sample."""

SCORES_AT_ONCE = 2**26  # head x query x key products held at a time while a map is averaged


class AttentionMaps:
    """Head-mean attention maps by (vision layer, sample), least recently used ones let go.

    A missing map costs one run of the vision encoder. Where the maps of all layers of all samples
    fit into the bound, one run records them all.
    """

    def __init__(
        self,
        adapter: Adapter,
        processor: Any,
        samples: Sequence[Sample],
        prepared: PreparedSet,
        *,
        limit_bytes: int,
        batch_size: int = 16,
    ) -> None:
        self.adapter, self.processor, self.samples = adapter, processor, samples
        self.prepared, self.limit_bytes, self.batch_size = prepared, limit_bytes, batch_size
        self._maps: OrderedDict[tuple[int, int], Maps] = OrderedDict()
        self.held_bytes = 0

    def attention(
        self, layer: int, indices: Sequence[int]
    ) -> dict[str, tuple[MappedAttention, ...]]:
        """The attention of `layer` over all tiles of a batch of samples, by kind and run."""
        indices = [self.prepared.first_alike[i] for i in indices]
        found = {i: self._maps[layer, i] for i in indices if (layer, i) in self._maps}
        for i in found:
            self._maps.move_to_end((layer, i))
        missing = sorted({i for i in indices if i not in found})
        for chunk in batches(len(missing), self.batch_size):
            found |= self._compute(layer, [missing[i] for i in chunk])
        prefix, suffix = self.adapter.num_prefix_tokens, self.adapter.num_suffix_tokens
        device = self.adapter.backbone.device
        attention = {}
        for kind in KINDS:
            mine = [i for i in indices if self.prepared.has(i, kind)]
            images = [one for i in mine for one in self.prepared.samples[i].visuals[kind].images]
            runs = by_run(images, [part for i in mine for part in found[i][kind]])
            attention[kind] = tuple(MappedAttention(r.to(device), prefix, suffix) for r in runs)
        return attention

    def _compute(self, layer: int, indices: list[int]) -> dict[int, Maps]:
        """Run the vision encoder on some samples; returns their maps of `layer`."""
        layers = self._layers_to_record(layer)
        fresh: dict[tuple[int, int], Maps] = {(each, i): {} for each in layers for i in indices}
        chosen = [self.samples[i] for i in indices]
        [inputs] = encoded_batches(self.adapter, self.processor, chosen, len(chosen))
        for kind in kinds_of(self.adapter, inputs):
            mine = [i for i in indices if self.prepared.has(i, kind)]
            images = [one for i in mine for one in self.prepared.samples[i].visuals[kind].images]
            for each, runs in self._record(layers, inputs, kind, images).items():
                parts = iter(by_image(images, runs))
                for i in mine:
                    count = len(self.prepared.samples[i].visuals[kind].images)
                    fresh[each, i][kind] = tuple(next(parts).clone() for _ in range(count))
        for (each, i), maps in fresh.items():
            self._keep(each, i, maps)
        return {i: fresh[layer, i] for i in indices}

    def _record(
        self, layers: Sequence[int], inputs: Any, kind: str, images: Sequence[ImageGeometry]
    ) -> dict[int, list[Tensor]]:
        """Head-mean maps (T, Q, Q) of some layers, one per run of the images."""
        call = encoder_inputs(self.adapter, inputs, kind)
        seen: dict[int, list[SeenAttention]] = {each: [] for each in layers}
        with ExitStack() as stack, torch.inference_mode():
            for each in layers:
                attention = self.adapter.vision_attentions[each]
                stack.enter_context(attention_probe(attention, _SeeInto(seen[each])))
            getattr(self.adapter.base, KINDS[kind])(**call, return_dict=True)
            return {
                each: [
                    head_mean_map(run)
                    for run in attention_by_run(self.adapter, seen[each], images, call)
                ]
                for each in layers
            }

    def _layers_to_record(self, layer: int) -> list[int]:
        """All layers that may score if everything fits, else the one asked for."""
        layers = list(self.adapter.vision_layers)
        extra = self.adapter.num_prefix_tokens + self.adapter.num_suffix_tokens
        everything = sum(
            4 * image.num_tiles * (image.tile_patches + extra) ** 2
            for sample in self.prepared.samples
            for image in sample.images
        )
        fits = everything * len(layers) <= self.limit_bytes
        return layers if fits and layer in layers else [layer]

    def _keep(self, layer: int, index: int, maps: Maps) -> None:
        self._maps[layer, index] = maps
        self.held_bytes += _nbytes(maps)
        while self.held_bytes > self.limit_bytes and len(self._maps) > 1:
            self.held_bytes -= _nbytes(self._maps.popitem(last=False)[1])


def _nbytes(maps: Maps) -> int:
    return sum(part.nbytes for parts in maps.values() for part in parts)


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
    heads, size = query_THQD.shape[1], query_THQD.shape[2]
    step = max(1, SCORES_AT_ONCE // (heads * size * size))
    parts = []
    for query, key in zip(torch.split(query_THQD, step), torch.split(key_THQD, step), strict=True):
        logits_THQQ = query @ key.transpose(-1, -2) * attention.scale
        parts.append(logits_THQQ.softmax(-1).mean(1).cpu())
    return torch.cat(parts)
