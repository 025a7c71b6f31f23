"""Prune a stock transformers model from outside: hooks on the base, backbone and layers.

Shape suffixes: B = batch rows, S = unpruned sequence, N = visual tokens of a sample,
K = tokens left, Q = new tokens, D = features.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from vflowopt_search.errors import UnsupportedError
from vflowopt_search.pruning.anatomy import Anatomy
from vflowopt_search.pruning.masks import LayerMasks
from vflowopt_search.pruning.positions import gather_last, packed, positions_at
from vflowopt_search.pruning.prefill import Prefill
from vflowopt_search.pruning.probe import attention_probe
from vflowopt_search.pruning.record import Applied
from vflowopt_search.pruning.scoring import Scoring
from vflowopt_search.pruning.state import (
    PrunedState,
    attach_state,
    is_empty,
    segment_of,
    state_of,
    whole_segment,
)
from vflowopt_search.strategy import Strategy


class PruningEngine:
    """One strategy on one model.

    The state of a prompt lives on its cache; between hooks of a single forward it is held here.
    """

    def __init__(self, anatomy: Anatomy, strategy: Strategy, applied: Applied) -> None:
        self.anatomy = anatomy
        self.strategy = strategy
        self.applied = applied
        self.scoring = Scoring(anatomy, strategy)
        self.later_layers = {s.layer: k for k, s in enumerate(strategy.stages) if s.layer > 0}
        self._input_ids: Tensor | None = None
        self._prefill: Prefill | None = None
        self._state: PrunedState | None = None
        self._masks: LayerMasks | None = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Prune inside the `with` block; everything is off again when it ends."""
        anatomy = self.anatomy
        with ExitStack() as stack:
            stack.callback(self._forget)
            stack.enter_context(self.scoring.recording())
            _hook(stack, anatomy.model, self.before_model)
            _hook(stack, anatomy.base, self.before_base)
            _hook(stack, anatomy.backbone, self.before_backbone)
            for layer in self._touched_layers():
                module = anatomy.decoder_layers[layer]
                _hook(stack, module, _LayerHook(self, layer))
            for layer in self.scoring.text_layers:
                probe = attention_probe(anatomy.decoder_attention(layer - 1), self._see_text)
                stack.enter_context(probe)
            yield

    def _touched_layers(self) -> range:
        """The layers from the first later stage on: they need a mask and positions of their own."""
        total = len(self.anatomy.decoder_layers)
        return range(min(self.later_layers, default=total), total)

    def _forget(self) -> None:
        self._input_ids = self._prefill = self._state = self._masks = None

    def before_model(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Refuse what cannot be done right on a shortened sequence."""
        if kwargs.get("labels") is not None:
            raise UnsupportedError(
                "labels were passed to a pruned model, whose logits are shorter than the labels; "
                "compute the loss outside, or leave the `with pruned(...)` block for training"
            )

    def before_base(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Remember the token ids, which show where the visual tokens are."""
        self._input_ids = kwargs.get("input_ids", args[0] if args else None)

    def before_backbone(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Start a prompt (the cache is empty) or go on with one."""
        self._prefill = self._state = self._masks = None
        cache = kwargs.get("past_key_values")
        if not is_empty(cache):
            return self._continue(args, kwargs, cache)
        if cache is not None:
            attach_state(cache, None)
        self._check_inputs()
        if self._num_visual() == 0:
            self.scoring.forget_images()
            return None
        return args, self._start(kwargs, cache)

    def _num_visual(self) -> int:
        if self._input_ids is None:
            raise UnsupportedError(
                "the model was given inputs_embeds without input_ids, so that visual tokens "
                "cannot be told from text; pass input_ids (and pixel_values) instead"
            )
        return int((self._input_ids == self.anatomy.image_token_id).sum())

    def _check_inputs(self) -> None:
        """Refuse visual tokens that would silently stay unpruned."""
        if self._input_ids is None:
            return
        for token, what in self.anatomy.refused_tokens.items():
            if bool((self._input_ids == token).any()):
                raise UnsupportedError(
                    f"the prompt has {what}, which is not pruned on {self.anatomy.model_type} "
                    "models; give images, or leave the `with pruned(...)` block for this prompt"
                )

    def _start(self, kwargs: dict[str, Any], cache: Any) -> dict[str, Any]:
        """Stage 0: shorten embeddings, positions and mask before the first layer sees them."""
        assert self._input_ids is not None
        cache = self._with_cache(kwargs, cache)
        visual_BS = self._input_ids == self.anatomy.image_token_id
        valid_BS = _valid(kwargs, visual_BS)
        prefill = Prefill(self.strategy, self.scoring, visual_BS, valid_BS)
        state = PrunedState([whole_segment(valid_BS)], visual_BS.shape[1])
        if self.strategy.stages[0].layer == 0:
            embeds_BSD = prefill.first_stage(kwargs["inputs_embeds"])
            if int(prefill.alive_BS.sum()) < int(valid_BS.sum()):
                state.segments, state.shortened = [segment_of(prefill.alive_BS, 0)], True
                kwargs = self._shortened(kwargs | {"inputs_embeds": embeds_BSD}, state)
        if cache is not None:
            attach_state(cache, state)
        self._prefill, self._state = prefill, state
        self._masks = LayerMasks(self.anatomy.backbone.config, cache, None)
        self.applied.watch(prefill.reader(len(self.anatomy.decoder_layers)))
        return kwargs

    def _with_cache(self, kwargs: dict[str, Any], cache: Any) -> Any:
        """The cache this prefill will fill: the backbone would make its own after our hook."""
        config = self.anatomy.backbone.config
        use_cache = kwargs.get("use_cache")
        if cache is None and (config.use_cache if use_cache is None else use_cache):
            cache = kwargs["past_key_values"] = DynamicCache(config=config)
        return cache

    def _shortened(self, kwargs: dict[str, Any], state: PrunedState) -> dict[str, Any]:
        """The backbone's arguments on the tokens of the first segment."""
        embeds_BSD, first = kwargs["inputs_embeds"], state.segments[0]
        position_ids = kwargs.get("position_ids")
        if position_ids is None:
            position_ids = torch.arange(embeds_BSD.shape[1], device=embeds_BSD.device)[None]
        position_ids = gather_last(position_ids, first.index_BK)
        if self.strategy.positions == "packed":
            position_ids, state.shift_B = packed(position_ids, first)
        index_BKD = first.index_BK[..., None].expand(-1, -1, embeds_BSD.shape[2])
        return kwargs | {
            "inputs_embeds": embeds_BSD.gather(1, index_BKD),
            "position_ids": position_ids,
            "attention_mask": first.valid_BK.long(),
        }

    def _continue(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], cache: Any
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Decode steps and later turns: masks on what the layers really hold."""
        state = state_of(cache)
        if self.scoring.forget_images():
            raise UnsupportedError(
                "an image was added to a conversation whose first turn is already in the cache; "
                "pruning reads all images in the first forward: start from an empty cache"
            )
        if state is None:
            return None
        self._state = state
        num_new = kwargs["inputs_embeds"].shape[1]
        tail_BQ = _tail(kwargs.get("attention_mask"), state.length)
        self._masks = LayerMasks(self.anatomy.backbone.config, cache, tail_BQ)
        if not state.shortened:
            return None
        valid = self._masks.valid(state.segments[0], 0, num_new)
        position_ids = kwargs.get("position_ids")
        if state.shift_B is not None:
            if position_ids is None:
                seen = int(cache.get_seq_length())
                new = torch.arange(seen, seen + num_new, device=state.shift_B.device)
                position_ids = new[None]
            position_ids = position_ids - state.shift_B[:, None]
        return args, kwargs | {"attention_mask": valid, "position_ids": position_ids}

    def before_layer(
        self, layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Prune if a stage starts here; give the layer its own mask and positions."""
        state = self._state
        if state is None or self._masks is None:
            return None
        hidden = args[0]
        if self._prefill is not None and layer in self.later_layers:
            hidden = self._later_stage(self._prefill, state, layer, hidden)
        segment = state.segment_at(layer)
        first = state.segments[0]
        if segment is first:
            return None
        mask = self._masks.mask(segment, layer, hidden)
        kwargs = kwargs | {"attention_mask": mask}
        if self._prefill is not None:
            kwargs |= positions_at(kwargs, first.places(segment))
        return (hidden, *args[1:]), kwargs

    def _later_stage(
        self, prefill: Prefill, state: PrunedState, layer: int, hidden_BKD: Tensor
    ) -> Tensor:
        """Drop what stage `layer` drops from the hidden states; opens a segment if any went."""
        before = state.segments[-1]
        prefill.later_stage(self.later_layers[layer])
        after = segment_of(prefill.alive_BS, layer)
        if int(after.valid_BK.sum()) == int(before.valid_BK.sum()):
            return hidden_BKD
        state.segments.append(after)
        place_BKD = before.places(after)[..., None].expand(-1, -1, hidden_BKD.shape[2])
        return hidden_BKD.gather(1, place_BKD)

    def _see_text(self, query_BHQD: Tensor, key_BHND: Tensor, scale: float) -> None:
        """File the last prompt token's attention to the visual tokens for the next stage."""
        if self._prefill is not None and self._state is not None:
            self._prefill.see_text(query_BHQD, key_BHND, scale, self._state.segments[-1])


class _LayerHook:
    """The pre-hook of one decoder layer."""

    def __init__(self, engine: PruningEngine, layer: int) -> None:
        self.engine, self.layer = engine, layer

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.engine.before_layer(self.layer, args, kwargs)


def _hook(stack: ExitStack, module: nn.Module, hook: Any) -> None:
    stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)


def _valid(kwargs: dict[str, Any], visual_BS: Tensor) -> Tensor:
    """True at real tokens, False at padding, shape (B, S)."""
    mask = kwargs.get("attention_mask")
    if mask is None:
        return torch.ones_like(visual_BS)
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        raise UnsupportedError(
            "the prompt came with a prepared 4-D attention mask (a static cache or a custom mask), "
            "which does not say which tokens are padding; pass the 2-D mask and a dynamic cache"
        )
    return mask.to(visual_BS.device).bool()


def _tail(attention_mask: Any, length: int) -> Tensor | None:
    """The part of a 2-D mask that speaks of tokens after the prompt, None if all are real."""
    if not isinstance(attention_mask, Tensor) or attention_mask.dim() != 2:
        return None
    return attention_mask[:, length:].bool()
