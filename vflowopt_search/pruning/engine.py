"""Prune a stock transformers model from outside: hooks on the base, backbone and layers.

Shape suffixes: B = batch rows, S = unpruned sequence, K = tokens left, H = heads, N = keys,
Q = new tokens, D = features.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from threading import local
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from vflowopt_search.ops.dispatch import text_attention
from vflowopt_search.pruning.anatomy import Anatomy
from vflowopt_search.pruning.forward import Forward, StagedPrefill, dense_deepstack, tokens_at
from vflowopt_search.pruning.hooks import OfOneModel, Switched, after, before, eagerly, forward_of
from vflowopt_search.pruning.inputs import (
    brings_features,
    ids_of,
    kinds_of,
    mask_after,
    refuse_labels,
    refuse_late_images,
    refuse_positions_of_logits,
    refuse_tokens,
    valid_tokens,
)
from vflowopt_search.pruning.masks import LayerMasks, hiding_nothing, masks_after, seen_by_last
from vflowopt_search.pruning.positions import positions_after
from vflowopt_search.pruning.probe import attention_probe
from vflowopt_search.pruning.scoring import PromptScoring
from vflowopt_search.pruning.state import (
    PrunedState,
    Segment,
    attach_state,
    cache_to_fill,
    is_empty,
    segment_of,
    state_of,
    whole_segment,
)
from vflowopt_search.pruning.training import Labels

CACHE, DEEPSTACK = "past_key_values", "deepstack_visual_embeds"
NOTHING: Mapping[str, Any] = MappingProxyType({})


class _Passed(local):
    """What the hooks of one forward hand to each other; each thread has its own."""

    call: Mapping[str, Any] = NOTHING
    labels: Labels | None = None
    forward: Forward | None = None


class Engine(OfOneModel, ABC):
    """Hooks on one model; what they prune is said by `prefill`.

    The state of a prompt lives on its cache; between hooks of a single forward it is held here,
    for each thread apart.
    """

    def __init__(
        self, anatomy: Anatomy, scoring: PromptScoring, later_layers: Mapping[int, int]
    ) -> None:
        self.anatomy, self.scoring, self.later_layers = anatomy, scoring, later_layers
        self._passed = _Passed()
        self._layer_hooks = Switched(
            before,
            {
                anatomy.decoder_layers[layer]: partial(self.before_layer, layer)
                for layer in self._touched_layers()
            },
        )
        self._end_hooks = Switched(after, {anatomy.backbone: self.after_backbone})
        self._label_hooks = Switched(after, {anatomy.model: self.after_model})

    @abstractmethod
    def prefill(self, kinds: Mapping[str, Tensor], valid_BS: Tensor) -> StagedPrefill:
        """Begin to prune a batch of prompts."""

    @abstractmethod
    def positions(self, ids_BK: Tensor, first: Segment) -> tuple[Tensor, Tensor | None]:
        """Positions of the tokens left by stage 0, and how far each row's last one moved, (B,)."""

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Prune inside the `with` block; everything is off again when it ends."""
        anatomy = self.anatomy
        with ExitStack() as stack:
            stack.enter_context(eagerly())
            stack.callback(self._forget)
            stack.enter_context(self.scoring.recording())
            before(stack, anatomy.model, self.before_model)
            before(stack, anatomy.base, self.before_base)
            before(stack, anatomy.backbone, self.before_backbone)
            for switched in (self._layer_hooks, self._end_hooks, self._label_hooks):
                stack.callback(switched.off)
            for layer in self.scoring.text_layers:
                see = partial(self._see_text, layer - 1)
                probe = attention_probe(anatomy.decoder_attention(layer - 1), see)
                stack.enter_context(probe)
            yield

    def _touched_layers(self) -> range:
        """The layers from the first later stage on: they need a mask and positions of their own.

        Where visual features are added between layers, all layers but the first.
        """
        total = len(self.anatomy.decoder_layers)
        if DEEPSTACK in inspect.signature(self.anatomy.backbone.forward).parameters:
            return range(1, total)
        return range(min(self.later_layers, default=total), total)

    def _forget(self) -> None:
        self._passed = _Passed()

    def before_model(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Refuse what cannot be done right on a shortened sequence; take labels in tow."""
        keep = kwargs.get("logits_to_keep")
        refuse_positions_of_logits(keep, bool(self.scoring.text_layers))
        self._passed.labels = None
        given = kwargs.get("labels")
        self._label_hooks.switch(on=given is not None)
        if given is None:
            return None
        refuse_labels(bool(self.scoring.text_layers))
        self._passed.labels = Labels(given, kwargs.get("attention_mask"))
        return args, kwargs | self._passed.labels.arguments()

    def after_model(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Let go of the labels, also after an exception."""
        self._passed.labels = None

    def before_base(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Remember the arguments: token ids show where the visual tokens are."""
        self._passed.call = kwargs if not args else {"input_ids": args[0]} | kwargs
        if not brings_features(self._passed.call):  # then images are encoded on the way
            self.scoring.forget_recorded()

    def before_backbone(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Start a prompt (the cache is empty) or go on with one."""
        self._passed.forward = None
        try:
            changed = self._begin(args, kwargs)
        finally:
            self._passed.call = NOTHING
        self._switch_hooks()
        return changed

    def _begin(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        cache = kwargs.get(CACHE)
        if not is_empty(cache):
            return self._continue(args, kwargs, cache)
        if cache is not None:
            attach_state(cache, None)
        input_ids = ids_of(self._passed.call)
        refuse_tokens(input_ids, self.anatomy.refused_tokens, self.anatomy.model_type)
        kinds = kinds_of(input_ids, self.anatomy)
        if not any(bool(mask_BS.any()) for mask_BS in kinds.values()):
            self.scoring.forget_images()
            return None
        self.scoring.begin(self._passed.call.get("mm_encoder_outputs"))
        return args, self._start(kwargs, cache, kinds)

    def _switch_hooks(self) -> None:
        """Have those hooks on that the forward which begins has something to do for.

        Training may run layers again in the backward, whatever forward came in between.
        """
        forward = self._passed.forward
        prefill = forward is not None and forward.prefill is not None
        self._end_hooks.switch(on=prefill or self._passed.labels is not None)
        if forward is not None and forward.touches_layers():
            self._layer_hooks.switch(on=True)
        elif not self.anatomy.backbone.training:
            self._layer_hooks.switch(on=False)

    def after_backbone(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Let go of a prompt, also after an exception; labels follow the tokens that came out."""
        if self._passed.labels is not None and self._passed.forward is not None:
            self._passed.labels.follow(self._passed.forward.state)
        self._passed.forward = None

    def _start(
        self, kwargs: dict[str, Any], cache: Any, kinds: dict[str, Tensor]
    ) -> dict[str, Any]:
        """Stage 0: shorten embeddings, positions and mask before the first layer sees them."""
        cache = kwargs[CACHE] = cache_to_fill(self.anatomy.backbone, cache, kwargs.get("use_cache"))
        given = kwargs.get("attention_mask")
        valid_BS = valid_tokens(self._passed.call.get("attention_mask"), given, kinds["image"])
        prefill = self.prefill(kinds, valid_BS)
        state = PrunedState([whole_segment(valid_BS)], valid_BS.shape[1])
        masks = LayerMasks(self.anatomy, cache, blocks_BS=self.anatomy.blocks(self._passed.call))
        self._passed.forward = Forward(state, masks, self.later_layers, prefill)
        embeds_BSD = prefill.first_stage(kwargs["inputs_embeds"])
        # the attention of the last prompt token is looked for in the last place of every row
        moved = bool(self.scoring.text_layers) and not bool(valid_BS[:, -1].all())
        if moved or bool((prefill.alive_BS != valid_BS).any()):
            state.segments, state.shortened = [segment_of(prefill.alive_BS, 0)], True
        if state.shortened or self.later_layers:
            kwargs = self._without_deepstack(kwargs, self._passed.forward, prefill)
        if state.shortened:
            kwargs = self._shortened(kwargs | {"inputs_embeds": embeds_BSD}, self._passed.forward)
        if cache is not None:
            attach_state(cache, state)
        return kwargs

    def _without_deepstack(
        self, kwargs: dict[str, Any], forward: Forward, prefill: StagedPrefill
    ) -> dict[str, Any]:
        """Take over the features that the backbone would add at places of the unpruned sequence."""
        embeds = kwargs.get(DEEPSTACK)
        if embeds is None:
            return kwargs
        visual_BS = kwargs["visual_pos_masks"]
        forward.deepstack = dense_deepstack(visual_BS, embeds, kwargs["inputs_embeds"], prefill)
        return kwargs | {DEEPSTACK: None, "visual_pos_masks": None}

    def _shortened(self, kwargs: dict[str, Any], forward: Forward) -> dict[str, Any]:
        """The backbone's arguments on the tokens of the first segment."""
        embeds_BSD, state = kwargs["inputs_embeds"], forward.state
        first = state.segments[0]
        position_ids = kwargs.get("position_ids")
        if position_ids is None:
            position_ids = torch.arange(embeds_BSD.shape[1], device=embeds_BSD.device)[None]
        embeds_BKD, position_ids = tokens_at(embeds_BSD, position_ids, first.index_BK)
        position_ids, state.shift_B = self.positions(position_ids, first)
        mask = forward.masks.for_backbone(kwargs.get("attention_mask"), state, embeds_BKD)
        return kwargs | {
            "inputs_embeds": embeds_BKD,
            "position_ids": position_ids,
            "attention_mask": mask,
        }

    def _continue(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], cache: Any
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Decode steps and later turns: masks on what the layers really hold."""
        num_new = kwargs["inputs_embeds"].shape[1]
        refuse_late_images(self.scoring.forget_images() or brings_features(self._passed.call))
        state = state_of(cache)
        if state is None:
            return None
        tail_BQ = mask_after(self._passed.call.get("attention_mask"), state.length)
        given, embeds_BQD = kwargs.get("attention_mask"), kwargs["inputs_embeds"]
        attention: str = self.anatomy.backbone.config._attn_implementation  # slow to read
        masks = masks_after(self.anatomy, attention, state, cache, num_new, tail_BQ)
        if masks is None:
            mask = hiding_nothing(attention, given, embeds_BQD)
        else:
            self._passed.forward = Forward(state, masks, self.later_layers)
            if not state.shortened:
                return None
            mask = masks.for_backbone(given, state, embeds_BQD)
        position_ids = positions_after(kwargs.get("position_ids"), num_new, state.shift_B, cache)
        return args, kwargs | {"attention_mask": mask, "position_ids": position_ids}

    def before_layer(
        self,
        layer: int,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None = None,
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Prune if a stage starts here; give the layer its own mask and positions.

        Without keyword arguments another thread is switching the hooks, and nothing is to be done.
        """
        forward = self._passed.forward
        if kwargs is None:
            return None
        if self.anatomy.backbone.training:
            forward = forward_of(kwargs, forward)
        if forward is None:
            return None
        hidden, kwargs = forward.before_layer(layer, args[0], kwargs)
        return (hidden, *args[1:]), kwargs

    def _see_text(self, layer: int, query_BHQD: Tensor, key_BHND: Tensor, scale: float) -> None:
        """File the last prompt token's attention to the visual tokens for the next stage."""
        forward = self._passed.forward
        if forward is not None and forward.prefill is not None:
            segment = forward.state.segments[-1]
            seen_BK = seen_by_last(self.anatomy.backbone.config, layer, segment.valid_BK)
            # a static cache shows the places that are still empty, too
            key_BHKD = key_BHND[:, :, : seen_BK.shape[1]]
            text_BK = text_attention(query_BHQD[:, :, -1], key_BHKD, scale, seen_BK)
            forward.prefill.see_text(text_BK, segment)
