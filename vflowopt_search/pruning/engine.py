"""Prune a stock transformers model from outside: hooks on the base, backbone and layers.

Shape suffixes: B = batch rows, S = unpruned sequence, K = tokens left, H = heads, N = keys,
Q = new tokens, D = features.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from vflowopt_search.errors import UnsupportedError
from vflowopt_search.ops.dispatch import text_attention
from vflowopt_search.pruning.anatomy import Anatomy
from vflowopt_search.pruning.forward import Forward, dense_deepstack, rows_at
from vflowopt_search.pruning.hooks import after, before, forward_of
from vflowopt_search.pruning.inputs import (
    brings_features,
    kinds_of,
    mask_after,
    refuse_positions_of_logits,
    refuse_tokens,
    valid_tokens,
)
from vflowopt_search.pruning.masks import LayerMasks, seen_by_last
from vflowopt_search.pruning.positions import gather_last, packed
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
from vflowopt_search.pruning.threads import PerThread, nothing
from vflowopt_search.pruning.training import Labels
from vflowopt_search.strategy import Strategy

DEEPSTACK = "deepstack_visual_embeds"


class PruningEngine:
    """One strategy on one model.

    The state of a prompt lives on its cache; between hooks of a single forward it is held here,
    for each thread apart.
    """

    _call: PerThread[dict[str, Any]] = PerThread(dict)
    _labels: PerThread[Labels | None] = PerThread(nothing)
    _forward: PerThread[Forward | None] = PerThread(nothing)

    def __init__(self, anatomy: Anatomy, strategy: Strategy, applied: Applied) -> None:
        self.anatomy = anatomy
        self.strategy = strategy
        self.applied = applied
        self.scoring = Scoring(anatomy, strategy)
        self.later_layers = {s.layer: k for k, s in enumerate(strategy.stages) if s.layer > 0}

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Prune inside the `with` block; everything is off again when it ends."""
        anatomy = self.anatomy
        with ExitStack() as stack:
            # a model compiled before would run its graph without our hooks
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.callback(self._forget)
            stack.enter_context(self.scoring.recording())
            before(stack, anatomy.model, self.before_model)
            before(stack, anatomy.base, self.before_base)
            before(stack, anatomy.backbone, self.before_backbone)
            after(stack, anatomy.model, self.after_model)
            after(stack, anatomy.base, self.after_base)
            after(stack, anatomy.backbone, self.after_backbone)
            for layer in self._touched_layers():
                module = anatomy.decoder_layers[layer]
                before(stack, module, partial(self.before_layer, layer))
            for layer in self.scoring.text_layers:
                see = partial(self._see_text, layer - 1)
                probe = attention_probe(anatomy.decoder_attention(layer - 1), see)
                stack.enter_context(probe)
            yield
        self.applied.freeze()

    def _touched_layers(self) -> range:
        """The layers from the first later stage on: they need a mask and positions of their own.

        Where visual features are added between layers, all layers but the first.
        """
        total = len(self.anatomy.decoder_layers)
        if DEEPSTACK in inspect.signature(self.anatomy.backbone.forward).parameters:
            return range(1, total)
        return range(min(self.later_layers, default=total), total)

    def _forget(self) -> None:
        self._labels = self._forward = None
        self._call = {}

    def before_model(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Refuse what cannot be done right on a shortened sequence; take labels in tow."""
        keep = kwargs.get("logits_to_keep")
        refuse_positions_of_logits(keep, bool(self.scoring.text_layers))
        self._labels = None
        if kwargs.get("labels") is None:
            return None
        if self.scoring.text_layers:
            raise UnsupportedError(
                "labels were given, but the strategy scores by the attention of the last prompt "
                "token, and with labels the answer stands behind it; train with a strategy that "
                "has no text_attention"
            )
        self._labels = Labels(kwargs["labels"], kwargs.get("attention_mask"))
        return args, kwargs | self._labels.arguments()

    def after_model(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Let go of the labels, also after an exception."""
        self._labels = None

    def before_base(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Remember the arguments: token ids show where the visual tokens are."""
        self._call = kwargs if not args else {"input_ids": args[0]} | kwargs
        if not brings_features(self._call):  # then images are encoded on the way
            self.scoring.forget_recorded()

    def after_base(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Let go of the arguments, also after an exception."""
        self._call = {}

    def before_backbone(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Start a prompt (the cache is empty) or go on with one."""
        self._forward = None
        cache = kwargs.get("past_key_values")
        if not is_empty(cache):
            return self._continue(args, kwargs, cache)
        if cache is not None:
            attach_state(cache, None)
        input_ids = self._input_ids()
        refuse_tokens(input_ids, self.anatomy.refused_tokens, self.anatomy.model_type)
        kinds = kinds_of(input_ids, self.anatomy)
        if not any(bool(mask_BS.any()) for mask_BS in kinds.values()):
            self.scoring.forget_images()
            return None
        self.scoring.begin(self._call.get("mm_encoder_outputs"))
        return args, self._start(kwargs, cache, kinds)

    def after_backbone(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Let labels follow the tokens that came out; the layers have run."""
        if self._labels is not None and self._forward is not None:
            self._labels.follow(self._forward.state)
        self._forward = None

    def _input_ids(self) -> Tensor:
        ids = self._call.get("input_ids")
        if ids is None:
            raise UnsupportedError(
                "the model was given inputs_embeds without input_ids, so that visual tokens "
                "cannot be told from text; pass input_ids (and pixel_values) instead"
            )
        return ids if isinstance(ids, Tensor) else torch.as_tensor(ids)

    def _start(
        self, kwargs: dict[str, Any], cache: Any, kinds: dict[str, Tensor]
    ) -> dict[str, Any]:
        """Stage 0: shorten embeddings, positions and mask before the first layer sees them."""
        cache = self._with_cache(kwargs, cache)
        given = kwargs.get("attention_mask")
        valid_BS = valid_tokens(self._call.get("attention_mask"), given, kinds["image"])
        prefill = Prefill(self.strategy, self.scoring, kinds, valid_BS)
        state = PrunedState([whole_segment(valid_BS)], valid_BS.shape[1])
        masks = LayerMasks(self.anatomy, cache, blocks_BS=self.anatomy.blocks(self._call))
        self._forward = Forward(state, masks, self.later_layers, prefill)
        self.applied.watch(prefill.reader(len(self.anatomy.decoder_layers)))
        embeds_BSD = kwargs["inputs_embeds"]
        if self.strategy.stages[0].layer == 0:
            embeds_BSD = prefill.first_stage(embeds_BSD)
        # the attention of the last prompt token is looked for in the last place of every row
        moved = bool(self.scoring.text_layers) and not bool(valid_BS[:, -1].all())
        if moved or int(prefill.alive_BS.sum()) < int(valid_BS.sum()):
            state.segments, state.shortened = [segment_of(prefill.alive_BS, 0)], True
        if state.shortened or self.later_layers:
            kwargs = self._without_deepstack(kwargs, self._forward, prefill)
        if state.shortened:
            kwargs = self._shortened(kwargs | {"inputs_embeds": embeds_BSD}, self._forward)
        if cache is not None:
            attach_state(cache, state)
        return kwargs

    def _with_cache(self, kwargs: dict[str, Any], cache: Any) -> Any:
        """The cache this prefill will fill: the backbone would make its own after our hook."""
        backbone = self.anatomy.backbone
        if backbone.training and getattr(backbone, "gradient_checkpointing", False):
            return cache  # transformers leaves it unused
        use_cache = kwargs.get("use_cache")
        if cache is None and (backbone.config.use_cache if use_cache is None else use_cache):
            cache = kwargs["past_key_values"] = DynamicCache(config=backbone.config)
        return cache

    def _without_deepstack(
        self, kwargs: dict[str, Any], forward: Forward, prefill: Prefill
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
        position_ids = gather_last(position_ids, first.index_BK)
        if self.strategy.positions == "packed":
            position_ids, state.shift_B = packed(position_ids, first)
        embeds_BKD = rows_at(embeds_BSD, first.index_BK)
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
        if self.scoring.forget_images() or brings_features(self._call):
            raise UnsupportedError(
                "an image came after the first part of its prompt was in the cache (a later turn, "
                "or prefill_chunk_size); pruning reads all images in the first forward: start "
                "from an empty cache, and prefill in one piece"
            )
        state = state_of(cache)
        if state is None:
            return None
        tail_BQ = mask_after(self._call.get("attention_mask"), state.length)
        masks = LayerMasks(self.anatomy, cache, tail_BQ=tail_BQ)
        self._forward = Forward(state, masks, self.later_layers)
        if not state.shortened:
            return None
        mask = masks.for_backbone(kwargs.get("attention_mask"), state, kwargs["inputs_embeds"])
        position_ids = kwargs.get("position_ids")
        if position_ids is not None:  # hand-written loops may pass those of the whole sequence
            position_ids = position_ids[..., -num_new:]
        if state.shift_B is not None:
            if position_ids is None:
                seen = int(cache.get_seq_length())
                new = torch.arange(seen, seen + num_new, device=state.shift_B.device)
                position_ids = new[None]
            position_ids = position_ids - state.shift_B[:, None]
        return args, kwargs | {"attention_mask": mask, "position_ids": position_ids}

    def before_layer(
        self, layer: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Prune if a stage starts here; give the layer its own mask and positions."""
        forward = self._forward
        if self.anatomy.backbone.training:
            forward = forward_of(kwargs, forward)
        if forward is None:
            return None
        hidden, kwargs = forward.before_layer(layer, args[0], kwargs)
        return (hidden, *args[1:]), kwargs

    def _see_text(self, layer: int, query_BHQD: Tensor, key_BHND: Tensor, scale: float) -> None:
        """File the last prompt token's attention to the visual tokens for the next stage."""
        forward = self._forward
        if forward is not None and forward.prefill is not None:
            segment = forward.state.segments[-1]
            seen_BK = seen_by_last(self.anatomy.backbone.config, layer, segment.valid_BK)
            text_BK = text_attention(query_BHQD[:, :, -1], key_BHND, scale, seen_BK)
            forward.prefill.see_text(text_BK, segment)
