"""A reference for any family: the unpruned model, in which the same tokens are forbidden to all.

The stock model runs once over prompt and answer, without a cache. Its text attention is replaced
by a plain one that takes the mask the model made and forbids the tokens pruned at that layer.

Shape suffixes: B = rows, S = sequence with generated tokens, H = heads, Q = queries, K = keys,
D = features, N = visual tokens of a row.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.families import TinyFamily
from vflowopt_search.adapters.base import Adapter
from vflowopt_search.adapters.registry import adapter_for
from vflowopt_search.pruning.record import LastPrefill
from vflowopt_search.strategy import Strategy

NEW_TOKENS = 9
NO_WINDOW = 1_000_000
TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids")


@dataclass(frozen=True)
class Steps:
    """Greedy steps: the ids (B, new) and the logits of each, in the model's dtype."""

    ids: Tensor
    logits: Tensor


def generate(model: Any, inputs: BatchFeature, **options: Any) -> Steps:
    """Prefill and eight decode steps; logits are taken at the head (`generate` rounds to fp32)."""
    seen: list[Tensor] = []
    head = model.get_output_embeddings()
    hook = head.register_forward_hook(lambda m, a, out: seen.append(out[:, -1].clone()))
    settings = {
        "max_new_tokens": NEW_TOKENS,
        "min_new_tokens": NEW_TOKENS,
        "do_sample": False,
        "suppress_tokens": placeholders(model),  # random weights may well say <image>
    }
    try:
        with torch.no_grad():
            sequences = model.generate(**inputs, **(settings | options))
    finally:
        hook.remove()
    return Steps(sequences[:, inputs["input_ids"].shape[1] :], torch.stack(seen, dim=1))


def placeholders(model: Any) -> list[int]:
    """Ids that stand for visual tokens; a trained model never says them."""
    names = ("image_token_id", "video_token_id")
    ids = {getattr(model.config, name, None) for name in names}
    return sorted(token for token in ids if token is not None)


def masked_logits(
    family: TinyFamily,
    model: Any,
    inputs: BatchFeature,
    ids: Tensor,
    last: LastPrefill,
    strategy: Strategy,
) -> Tensor:
    """The logits of the same steps where the same tokens are masked, (B, new, V)."""
    grown = with_answer(inputs, ids[:, :-1], family.new_token_type)
    seen: list[Tensor] = []
    with torch.no_grad(), forbidding(model, grown, inputs["input_ids"].shape[1], last, strategy):
        head = model.get_output_embeddings()
        hook = head.register_forward_hook(lambda m, a, out: seen.append(out[:, -NEW_TOKENS:]))
        model(**grown, use_cache=False)
        hook.remove()
    return seen[0]


@contextmanager
def forbidding(
    model: Any, grown: dict[str, Any], prompt: int, last: LastPrefill, strategy: Strategy
) -> Iterator[list[Tensor]]:
    """Forbid the model to look at what was removed from these prompts, inside the `with` block.

    Args:
        model: the unpruned model.
        grown: the inputs that it will be given, answers included.
        prompt: length of the prompts.
        last: what was removed.
        strategy: says how positions are counted.

    Yields:
        Which tokens are alive at each decoder layer, boolean (B, S).
    """
    adapter = adapter_for(model)
    alive_LBS = alive_per_layer(adapter, grown, prompt, last)
    rewrite = _Rewrite(adapter, grown, alive_LBS, last, strategy)
    with _masking(adapter, alive_LBS):
        hook = adapter.backbone.register_forward_pre_hook(rewrite, with_kwargs=True)
        try:
            yield alive_LBS
        finally:
            hook.remove()


def with_answer(inputs: BatchFeature, ids: Tensor, token_type: int) -> dict[str, Any]:
    """The inputs with an answer behind every prompt."""
    grown = dict(inputs)
    grown["input_ids"] = torch.cat([inputs["input_ids"], ids], dim=1)
    ones = torch.ones_like(ids)
    grown["attention_mask"] = torch.cat([inputs["attention_mask"], ones], dim=1)
    for name in TOKEN_TYPES:
        if name in grown:
            grown[name] = torch.cat([grown[name], ones * token_type], dim=1)
    return grown


def alive_per_layer(
    adapter: Adapter, grown: dict[str, Any], prompt: int, last: LastPrefill
) -> list[Tensor]:
    """Which tokens may be looked at at each decoder layer, boolean (B, S)."""
    alive_BS = grown["attention_mask"].bool().clone()
    visual_BS = visual_tokens(adapter, grown["input_ids"])
    visual_BS[:, prompt:] = False
    per_layer = []
    for layer in range(len(adapter.decoder_layers)):
        if layer in last.kept:
            alive_BS = alive_BS & ~visual_BS
            for row, kept in enumerate(last.kept[layer]):
                alive_BS[row, kept] = True
        per_layer.append(alive_BS)
    return per_layer


def visual_tokens(adapter: Adapter, input_ids: Tensor) -> Tensor:
    """Where image and video placeholders are."""
    visual_BS = input_ids == adapter.image_token_id
    if adapter.video_token_id is not None:
        visual_BS = visual_BS | (input_ids == adapter.video_token_id)
    return visual_BS


class _Rewrite:
    """Writes recycled tokens, and packed positions, into what the backbone is given."""

    def __init__(
        self,
        adapter: Adapter,
        grown: dict[str, Any],
        alive_LBS: list[Tensor],
        last: LastPrefill,
        strategy: Strategy,
    ) -> None:
        self.visual_BS = visual_tokens(adapter, grown["input_ids"])
        self.valid_BS = grown["attention_mask"].bool()
        self.alive_BS, self.last, self.strategy = alive_LBS[0], last, strategy

    def __call__(self, module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        embeds_BSD = kwargs["inputs_embeds"] = kwargs["inputs_embeds"].clone()
        self._recycle(embeds_BSD)
        if kwargs.get("deepstack_visual_embeds") is not None:
            visual_BS = kwargs["visual_pos_masks"]
            kwargs["deepstack_visual_embeds"] = [
                self._recycled_flat(visual_BS, one, embeds_BSD)
                for one in kwargs["deepstack_visual_embeds"]
            ]
        given = kwargs.get("position_ids")
        if given is None or given.dim() == 2:
            kwargs["position_ids"] = self._positions(given)
        return args, kwargs

    def _recycled_flat(self, visual_BS: Tensor, flat_VD: Tensor, like_BSD: Tensor) -> Tensor:
        dense_BSD = torch.zeros_like(like_BSD)
        dense_BSD[visual_BS] = flat_VD.to(like_BSD)
        self._recycle(dense_BSD)
        return dense_BSD[visual_BS]

    def _recycle(self, values_BSD: Tensor) -> None:
        for row, recycled in enumerate(self.last.recycled):
            places = self.visual_BS[row].nonzero()[:, 0].tolist()
            weight = dict(zip(places, self.last.importance[row].tolist(), strict=True))
            means = {
                anchor: sum(weight[p] * values_BSD[row, p] for p in members)
                / sum(weight[p] for p in members)
                for anchor, members in recycled.items()
            }
            for anchor, mean in means.items():
                values_BSD[row, anchor] = mean

    def _positions(self, given: Tensor | None) -> Tensor:
        """As `generate` counts them: from the first real, or with packing first living, token."""
        counted_BS = self.alive_BS if self.strategy.positions == "packed" else self.valid_BS
        start = 0 if given is None else int(given.min())
        return (counted_BS.long().cumsum(1) - 1).clamp(min=0) + start


@contextmanager
def _masking(adapter: Adapter, alive_LBS: list[Tensor]) -> Iterator[None]:
    """Let every decoder layer look at living tokens only, inside the `with` block."""
    config = adapter.backbone.config
    windows = {
        name: getattr(config, name)
        for name in ("sliding_window", "attention_chunk_size")
        if getattr(config, name, None)
    }
    same = "sliding_attention" if "sliding_window" in windows else "full_attention"
    kinds = getattr(config, "layer_types", None) or [same] * len(alive_LBS)
    implementation = config._attn_implementation_internal
    with ExitStack() as stack:
        for layer, alive_BS in enumerate(alive_LBS):
            attention = _Masked(alive_BS, kinds[layer], windows)
            stack.enter_context(_attention_of(adapter.decoder_attention(layer), attention))
        config._attn_implementation_internal = "eager"  # masks are built in full
        for name in windows:
            setattr(config, name, NO_WINDOW)
        try:
            yield
        finally:
            config._attn_implementation_internal = implementation
            for name, value in windows.items():
                setattr(config, name, value)


@contextmanager
def _attention_of(module: Any, function: Any) -> Iterator[None]:
    name, original = f"oracle_{id(function)}", module.config
    module.config = copy.copy(original)
    module.config._attn_implementation_internal = name
    ALL_ATTENTION_FUNCTIONS[name] = function
    try:
        yield
    finally:
        module.config = original
        del ALL_ATTENTION_FUNCTIONS[name]  # type: ignore[no-untyped-call]


class _Masked:
    """Plain attention in full precision; windows count the tokens that the layer would hold."""

    def __init__(self, alive_BS: Tensor, kind: str, windows: dict[str, int]) -> None:
        self.alive_BS, self.kind, self.windows = alive_BS, kind, windows

    def __call__(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **options: Any
    ) -> tuple[Tensor, None]:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        scale = options.get("scaling")
        logits_BHQK = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
        if options.get("softcap"):
            logits_BHQK = options["softcap"] * torch.tanh(logits_BHQK / options["softcap"])
        logits_BHQK = logits_BHQK.masked_fill(~self._allowed(mask), torch.finfo(query.dtype).min)
        mixed = logits_BHQK.softmax(-1).to(value.dtype) @ value
        return mixed.transpose(1, 2).contiguous(), None

    def _allowed(self, mask_B1QK: Tensor) -> Tensor:
        size = self.alive_BS.shape[1]
        allowed = (mask_B1QK if mask_B1QK.dtype == torch.bool else mask_B1QK == 0)[..., :size]
        rank_BS = self.alive_BS.long().cumsum(1) - 1
        if self.kind == "sliding_attention":
            behind_BQK = rank_BS[:, :, None] - rank_BS[:, None, :]
            allowed = allowed & (behind_BQK < self.windows["sliding_window"])[:, None]
        if self.kind == "chunked_attention":
            chunk_BS = rank_BS // self.windows["attention_chunk_size"]
            allowed = allowed & (chunk_BS[:, :, None] == chunk_BS[:, None, :])[:, None]
        allowed = allowed & self.alive_BS[:, None, None, :]
        return allowed | torch.eye(size, dtype=torch.bool)
