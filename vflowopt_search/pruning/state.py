"""What a pruned prefill leaves behind for the decode steps; it lives on the cache object.

Shape suffixes: B = batch rows, S = unpruned sequence, K = tokens left, Q = new tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

STATE = "_vflowopt_state"

SPANS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
"""Attention patterns that reach only so far, and the setting that says how far."""


@dataclass(frozen=True)
class Segment:
    """A run of decoder layers that work on one set of tokens.

    Attributes:
        start: first decoder layer of the run; it ends where the next segment starts.
        index_BK: positions of the tokens in the unpruned sequence, left-padded with 0.
        valid_BK: False at padding.
        dense: True when nothing is padding, so that no mask is needed beyond causality.
    """

    start: int
    index_BK: Tensor
    valid_BK: Tensor
    dense: bool

    def places(self, other: Segment) -> Tensor:
        """Where the tokens of `other` stand in this segment, shape of `other.index_BK`."""
        # ascending, and in padding 0: the last place that is no greater
        index_BK, wanted_BK = self.index_BK.contiguous(), other.index_BK.contiguous()
        return (torch.searchsorted(index_BK, wanted_BK, right=True) - 1).clamp(min=0)


def segment_of(alive_BS: Tensor, start: int) -> Segment:
    """The segment of the tokens that are True in `alive_BS`, left-padded to the longest row."""
    count_B = alive_BS.sum(1)
    counts = count_B.tolist()
    longest = max(counts)
    order_BS = torch.argsort(alive_BS.to(torch.int8), dim=1, stable=True)[:, -longest:]
    place_K = torch.arange(longest, device=alive_BS.device)
    valid_BK = place_K >= (longest - count_B)[:, None]
    index_BK = torch.where(valid_BK, order_BS, 0)
    return Segment(start, index_BK, valid_BK, dense=min(counts) == longest)


def whole_segment(valid_BS: Tensor) -> Segment:
    """The segment of a prompt as it came in, padding where it was."""
    index_BS = torch.arange(valid_BS.shape[1], device=valid_BS.device).expand_as(valid_BS)
    return Segment(0, index_BS, valid_BS, dense=bool(valid_BS.all()))


@dataclass
class PrunedState:
    """The segments of a prompt and what decoding after it needs to know.

    Attributes:
        segments: in the order of the layers; the first starts at layer 0.
        length: tokens of the unpruned prompt, padding included.
        shortened: whether stage 0 removed anything, so that layer 0 holds fewer tokens.
        shift_B: how far positions moved forward by packing, None for original positions.
        staged: layers whose stage has run.
        grows: whether a decode step found that the layers hold what they were given and no more.
        unmasked: attention implementation for which a single new token needs no mask, if any.
        prompt_masks: the eager masks that decode steps share.
    """

    segments: list[Segment]
    length: int
    shortened: bool = False
    shift_B: Tensor | None = None
    staged: set[int] = field(default_factory=set)
    grows: bool = False
    unmasked: str | None = None
    prompt_masks: dict[Any, Tensor] = field(default_factory=dict)
    _spans: list[tuple[int, int | None]] = field(default_factory=list)

    def segment_at(self, layer: int) -> Segment:
        """The segment that a decoder layer belongs to."""
        found = self.segments[0]
        for segment in self.segments[1:]:
            if segment.start > layer:
                break
            found = segment
        return found

    @property
    def dense(self) -> bool:
        """Whether no segment has padding."""
        return all(segment.dense for segment in self.segments)

    def spans(self, config: Any) -> list[tuple[int, int | None]]:
        """One layer of each attention pattern in each segment, and how far the pattern reaches.

        To be asked once the prompt has been read: then segments do not change any more.
        """
        if not self._spans:
            kinds = {
                (self.segment_at(layer).start, layer_type(config, layer)): layer
                for layer in reversed(range(config.num_hidden_layers))
            }
            self._spans = [(layer, span_of(config, kind)) for (_, kind), layer in kinds.items()]
        return self._spans

    def end_of_first(self, num_layers: int) -> int:
        """How many decoder layers, of `num_layers`, belong to the first segment."""
        return self.segments[1].start if len(self.segments) > 1 else num_layers


class LogicalLength:
    """Mixed into a cache's class: the cache answers the length of the *unpruned* sequence.

    `generate`, position ids and a second turn all count the tokens that users gave, while every
    layer holds fewer; masks are sized per layer and read the real lengths.
    """

    layers: list[Any]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen so far, those that were pruned included."""
        held = self.get_query_offset(layer_idx)
        state = state_of(self)
        if state is None or held == 0:
            return held
        return held - state.segment_at(layer_idx).index_BK.shape[1] + state.length

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Tokens that this layer really holds: masks are laid out on these."""
        # a cache made without a config gets its layers as these are first written
        held = self.layers[layer_idx : layer_idx + 1]
        return int(held[0].get_seq_length()) if held else 0


def cache_to_fill(backbone: Any, cache: Any, use_cache: bool | None) -> Any:
    """The cache that a prefill will fill: the backbone would make its own after our hook."""
    if backbone.training and getattr(backbone, "gradient_checkpointing", False):
        return cache  # transformers leaves it unused
    if cache is None and (backbone.config.use_cache if use_cache is None else use_cache):
        return DynamicCache(config=backbone.config)
    return cache


def attach_state(cache: Any, state: PrunedState | None) -> None:
    """Keep `state` on the cache object and let it answer the unpruned length from now on."""
    if state is None and state_of(cache) is None:
        return
    if not isinstance(cache, LogicalLength):
        cache.__class__ = _LOGICAL.get(type(cache)) or _logical(type(cache))
    setattr(cache, STATE, state)


_LOGICAL: dict[type, type] = {}
"""Class of a cache to that of one which answers the unpruned length; making a class is slow."""


def _logical(kind: type) -> type:
    return _LOGICAL.setdefault(kind, type(f"Pruned{kind.__name__}", (LogicalLength, kind), {}))


def state_of(cache: Any) -> PrunedState | None:
    """What a pruned prefill left on this cache, None if it was not pruned."""
    return getattr(cache, STATE, None)


def is_empty(cache: Any) -> bool:
    """Whether nothing has been written yet: the coming forward is a prefill."""
    return cache is None or not cache.layers or int(cache.layers[0].get_seq_length()) == 0


def layer_type(config: Any, layer: int) -> str:
    """Name of the attention pattern of a layer, as transformers spells it."""
    kinds = getattr(config, "layer_types", None)
    if kinds:
        return str(kinds[layer])
    return "sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"


def span_of(config: Any, kind: str) -> int | None:
    """How many tokens an attention pattern reaches back; None: all; 0: it is none of those."""
    if kind == "full_attention":
        return None
    return int(getattr(config, SPANS[kind])) if kind in SPANS else 0
