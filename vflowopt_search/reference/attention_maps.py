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
from vflowopt_search.calibration.samples import Sample
from vflowopt_search.importance.signals import MappedAttention
from vflowopt_search.pruning.probe import attention_probe
from vflowopt_search.reference.prepared import (
    PreparedSet,
    batches,
    encoded_batches,
    vision_inputs,
)

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
        self._maps: OrderedDict[tuple[int, int], Tensor] = OrderedDict()
        self.held_bytes = 0

    def attention(self, layer: int, indices: Sequence[int]) -> MappedAttention:
        """The attention of `layer` over all tiles of a batch of samples."""
        indices = [self.prepared.first_alike[i] for i in indices]
        found = {i: self._maps[layer, i] for i in indices if (layer, i) in self._maps}
        for i in found:
            self._maps.move_to_end((layer, i))
        missing = sorted({i for i in indices if i not in found})
        for chunk in batches(len(missing), self.batch_size):
            found |= self._compute(layer, [missing[i] for i in chunk])
        device = self.adapter.backbone.device
        map_TQQ = torch.cat([found[i] for i in indices]).to(device)
        return MappedAttention(map_TQQ, prefix=self.adapter.num_prefix_tokens)

    def _compute(self, layer: int, indices: list[int]) -> dict[int, Tensor]:
        """Run the vision encoder on some samples; returns their maps of `layer`."""
        layers = self._layers_to_record(layer)
        seen: dict[int, Tensor] = {}
        chosen = [self.samples[i] for i in indices]
        [inputs] = encoded_batches(self.adapter, self.processor, chosen, len(chosen))
        with ExitStack() as stack, torch.inference_mode():
            for each in layers:
                attention = self.adapter.vision_attentions[each]
                stack.enter_context(attention_probe(attention, _MapInto(seen, each)))
            self.adapter.base.get_image_features(**vision_inputs(inputs), return_dict=True)
        tiles = [self.prepared.samples[i].num_tiles for i in indices]
        for each, map_TQQ in seen.items():
            for i, part in zip(indices, torch.split(map_TQQ, tiles), strict=True):
                self._keep(each, i, part.clone())
        return dict(zip(indices, torch.split(seen[layer], tiles), strict=True))

    def _layers_to_record(self, layer: int) -> list[int]:
        """All layers if everything fits, else the one asked for."""
        num_layers = len(self.adapter.vision_attentions)
        num_tiles = sum(sample.num_tiles for sample in self.prepared.samples)
        size = self.adapter.side**2 + self.adapter.num_prefix_tokens
        everything = 4 * size**2 * num_tiles * num_layers
        return list(range(num_layers)) if everything <= self.limit_bytes else [layer]

    def _keep(self, layer: int, index: int, map_TQQ: Tensor) -> None:
        self._maps[layer, index] = map_TQQ
        self.held_bytes += map_TQQ.nbytes
        while self.held_bytes > self.limit_bytes and len(self._maps) > 1:
            self.held_bytes -= self._maps.popitem(last=False)[1].nbytes


class _MapInto:
    """Averages the heads of a softmax map, a few tiles at a time, into a dictionary."""

    def __init__(self, seen: dict[int, Tensor], layer: int) -> None:
        self.seen, self.layer = seen, layer

    def __call__(self, query_THQD: Tensor, key_THQD: Tensor, scale: float) -> None:
        heads, size = query_THQD.shape[1], query_THQD.shape[2]
        step = max(1, SCORES_AT_ONCE // (heads * size * size))
        parts = [
            head_mean_map(q, k, scale).cpu()
            for q, k in zip(torch.split(query_THQD, step), torch.split(key_THQD, step), strict=True)
        ]
        self.seen[self.layer] = torch.cat(parts)


def head_mean_map(query_THQD: Tensor, key_THQD: Tensor, scale: float) -> Tensor:
    """Mean over heads of softmax(q k^T * scale), fp32 (T, Q, Q), queries before keys."""
    logits_THQQ = query_THQD.float() @ key_THQD.float().transpose(-1, -2) * scale
    return logits_THQQ.softmax(-1).mean(1)
