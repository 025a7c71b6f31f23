"""Attention masks of layers that hold fewer tokens than their neighbours, built by transformers.

Shape suffixes: B = batch rows, K = tokens held, Q = new tokens, D = features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vflowopt_search.pruning.anatomy import Anatomy
from vflowopt_search.pruning.state import PrunedState, Segment, layer_type, span_of

NO_MASK_NEEDED = ("sdpa", "flash_attention_2", "flash_attention_3")
"""Implementations that take None for a mask that hides nothing from a single new token."""

ROOM = 256
"""Tokens of an answer for which an eager mask is made at a time."""


class LayerMasks:
    """The masks of one forward, one per segment and layer type."""

    def __init__(
        self,
        anatomy: Anatomy,
        cache: Any,
        *,
        tail_BQ: Tensor | None = None,
        blocks_BS: Tensor | None = None,
        prompt_masks: dict[Any, Tensor] | None = None,
    ) -> None:
        """Masks for the layers of a model.

        Args:
            anatomy: the model's parts.
            cache: the cache of this forward, None without one.
            tail_BQ: which of the tokens after the prompt are real; None when all are.
            blocks_BS: blocks of the prompt in which tokens see each other both ways, -1 outside.
            prompt_masks: the eager masks that decode steps share.
        """
        self.anatomy, self.config = anatomy, anatomy.backbone.config
        self.cache, self.tail_BQ, self.blocks_BS = cache, tail_BQ, blocks_BS
        self.implementation: str = self.config._attn_implementation
        self.prompt_masks = {} if prompt_masks is None else prompt_masks
        self._made: dict[tuple[int, str], Any] = {}
        self._real: dict[int, bool] = {}
        self._kinds = getattr(self.config, "layer_types", None)

    def valid(self, segment: Segment, layer: int, num_new: int) -> Tensor:
        """Which of the keys that `layer` sees in this forward are real, boolean (B, K)."""
        held = 0 if self.cache is None else _held(self.cache, layer)
        if held == 0:
            return segment.valid_BK
        # assisted decoding takes back candidates that were prefilled behind the prompt
        valid_BK = segment.valid_BK[:, :held]
        num_after = held + num_new - valid_BK.shape[1]
        tail_BQ = self.tail_BQ
        if tail_BQ is None or tail_BQ.shape[1] != num_after:
            tail_BQ = valid_BK.new_ones(valid_BK.shape[0], num_after)
        return torch.cat([valid_BK, tail_BQ.to(valid_BK.device)], dim=1)

    def mask(self, segment: Segment, layer: int, hidden_BQD: Tensor) -> Any:
        """The mask transformers would give this layer, had the model never seen the others."""
        kind = self._kind(layer)
        if (segment.start, kind) not in self._made:
            one = hidden_BQD.shape[1] == 1 and self._one_sees_all(layer, span_of(self.config, kind))
            make = self._of_one if one else self._of_any
            self._made[segment.start, kind] = make(segment, layer, hidden_BQD)
        return self._made[segment.start, kind]

    def _kind(self, layer: int) -> str:
        return str(self._kinds[layer]) if self._kinds else layer_type(self.config, layer)

    def hide_nothing(self, state: PrunedState, num_new: int) -> bool:
        """Whether the new token sees all that every layer holds: then one mask, or none, does.

        So it is in most decode steps: one token, rows without padding, no window full yet.
        """
        if num_new != 1 or not state.dense:
            return False
        if self.implementation not in (*NO_MASK_NEEDED, "eager"):
            return False
        if not self._all_seen(state):
            return False
        return self.tail_BQ is None or bool(self.tail_BQ.all())

    def _all_seen(self, state: PrunedState) -> bool:
        """Whether one new token may look at every key; once true, only windows can change that."""
        layers = state.spans(self.config)
        if state.grows:
            layers = [(layer, span) for layer, span in layers if span is not None]
        seen = all(self._one_sees_all(layer, span) for layer, span in layers)
        state.grows = state.grows or seen
        if seen and not layers:
            state.unmasked = self.implementation
        return seen

    def _one_sees_all(self, layer: int, span: int | None) -> bool:
        """Whether one new token may look at every key of a layer, but for padding."""
        held = 0 if self.cache is None else _held(self.cache, layer)
        if held == 0 or (span is not None and held + 1 >= span):
            return False
        # a static cache shows the places that are still empty, too
        return self.cache.get_mask_sizes(1, layer) == (held + 1, 0)  # type: ignore[no-any-return]

    def _of_one(self, segment: Segment, layer: int, hidden_B1D: Tensor) -> Any:
        """The mask of one new token that sees everything but padding."""
        if self.implementation not in ("sdpa", "eager"):
            return self._of_any(segment, layer, hidden_B1D)
        num_keys = _held(self.cache, layer) + 1
        num_after = num_keys - segment.valid_BK.shape[1]
        if self.implementation == "eager" and num_after > 0 and self._real_after(num_after):
            return self._with_room(segment, num_keys, hidden_B1D)[..., :num_keys]
        seen_B11K = self.valid(segment, layer, 1)[:, None, None]
        return seen_B11K if self.implementation == "sdpa" else _added(seen_B11K, hidden_B1D)

    def _with_room(self, segment: Segment, num_keys: int, like_B1D: Tensor) -> Tensor:
        """The eager mask of a prompt and what follows, for `num_keys` or more: steps share it."""
        key = (segment.start, like_B1D.dtype)
        found = self.prompt_masks.get(key)
        if found is None or found.shape[-1] < num_keys:
            prompt_B11K = _added(segment.valid_BK[:, None, None], like_B1D)
            room = num_keys - prompt_B11K.shape[-1] + ROOM
            found = self.prompt_masks[key] = torch.nn.functional.pad(prompt_B11K, (0, room))
        return found

    def _real_after(self, num_after: int) -> bool:
        """Whether none of the tokens after the prompt is padding, the same for all layers."""
        if num_after not in self._real:
            tail_BQ = self.tail_BQ
            if tail_BQ is None or tail_BQ.shape[1] != num_after:
                self._real[num_after] = True
            else:
                self._real[num_after] = bool(tail_BQ.all())
        return self._real[num_after]

    def _of_any(self, segment: Segment, layer: int, hidden_BQD: Tensor) -> Any:
        """The mask that transformers makes."""
        return self.anatomy.layer_mask(
            layer_type(self.config, layer),
            self._blocks(segment),
            config=self.config,
            inputs_embeds=hidden_BQD,
            attention_mask=self.valid(segment, layer, hidden_BQD.shape[1]),
            past_key_values=self.cache,
            position_ids=None,
            layer_idx=layer,
        )

    def for_backbone(self, given: Any, state: PrunedState, hidden_BQD: Tensor) -> Any:
        """Masks of the first segment in the form that the backbone was given: 2-D, 4-D or by kind.

        A backbone that is given one mask for all its layers makes them of one kind.
        """
        segment = state.segments[0]
        if isinstance(given, Mapping):
            # a layer of a later segment holds another number of tokens
            end = state.end_of_first(len(self.anatomy.decoder_layers))
            kinds = [layer_type(self.config, layer) for layer in range(end)]
            return {
                kind: self.mask(segment, kinds.index(kind), hidden_BQD) if kind in kinds else mask
                for kind, mask in given.items()
            }
        if isinstance(given, Tensor) and given.dim() == 4:
            return self.mask(segment, 0, hidden_BQD)
        # of one new token ours is made faster; it serves where all layers are of one kind
        one = hidden_BQD.shape[1] == 1
        if one and all(span is None for _, span in state.spans(self.config)):
            return self.mask(segment, 0, hidden_BQD)
        return self.valid(segment, 0, hidden_BQD.shape[1]).long()

    def _blocks(self, segment: Segment) -> Tensor | None:
        """The blocks of a segment's tokens; padding belongs to none."""
        if self.blocks_BS is None:
            return None
        index_BK = segment.index_BK.to(self.blocks_BS.device)
        blocks_BK = self.blocks_BS.gather(1, index_BK)
        return torch.where(segment.valid_BK.to(blocks_BK.device), blocks_BK, -1)


def masks_after(
    anatomy: Anatomy,
    attention: str,
    state: PrunedState,
    cache: Any,
    num_new: int,
    tail_BQ: Tensor | None,
) -> LayerMasks | None:
    """The masks of tokens behind a pruned prompt, None where they hide nothing."""
    # no layer's window will fill up: only the new tokens themselves may be padding
    free = num_new == 1 and state.unmasked == attention
    if free and (tail_BQ is None or bool(tail_BQ.all())):
        return None
    masks = LayerMasks(anatomy, cache, tail_BQ=tail_BQ, prompt_masks=state.prompt_masks)
    return None if masks.hide_nothing(state, num_new) else masks


def hiding_nothing(attention: str, given: Any, hidden_BQD: Tensor) -> Any:
    """A mask for the backbone that hides nothing, whatever number of tokens a layer holds."""
    nothing = hidden_BQD.new_zeros(1, 1, 1, 1) if attention == "eager" else None
    return dict.fromkeys(given, nothing) if isinstance(given, Mapping) else nothing


def seen_by_last(config: Any, layer: int, valid_BK: Tensor) -> Tensor:
    """The tokens that the last one of a prompt looks at in a layer, boolean (B, K).

    Args:
        config: the backbone's configuration.
        layer: a decoder layer; its window or chunk counts the tokens that it holds.
        valid_BK: False at padding, which is on the left.
    """
    kind, length = layer_type(config, layer), valid_BK.shape[1]
    place_K = torch.arange(length, device=valid_BK.device)
    if kind == "sliding_attention":
        return valid_BK & (place_K >= length - int(config.sliding_window))
    if kind == "chunked_attention":
        size = int(config.attention_chunk_size)
        chunk_BK = (place_K - (~valid_BK).sum(1, keepdim=True)) // size
        return valid_BK & (chunk_BK == chunk_BK[:, -1:])
    return valid_BK


def _added(seen: Tensor, like_BQD: Tensor) -> Tensor:
    """A boolean mask as what is added to attention logits."""
    return torch.where(seen, like_BQD.new_zeros(()), torch.finfo(like_BQD.dtype).min)


def _held(cache: Any, layer: int) -> int:
    """Tokens in the cache of one layer."""
    return int(cache.layers[layer].get_seq_length()) if layer < len(cache.layers) else 0
