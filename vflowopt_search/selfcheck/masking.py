"""What a pruned model must say: the unpruned model, in which the same tokens are masked for all.

The stock model runs once over prompt and answer, without a cache and with nothing removed. Its
decoder attends eagerly, by its own function, under masks to which the masked tokens are added.

Shape suffixes: B = rows, S = prompt and answer, L = decoder layers, Q = queries, K = keys,
V = vocabulary.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import eager_attention_forward

from vflowopt_search.adapters.base import Adapter
from vflowopt_search.pruning.probe import eager_of, functions_of
from vflowopt_search.pruning.record import LastPrefill
from vflowopt_search.pruning.state import SPANS, layer_type

NO_WINDOW = 2**30
TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids")


def masked_logits(
    adapter: Adapter, inputs: Mapping[str, Any], ids: Tensor, last: LastPrefill | None
) -> Tensor:
    """The logits of every step of an answer, (B, new, V), by masking in place of removal.

    Args:
        adapter: the model, not pruned.
        inputs: the prompts, left-padded.
        ids: the answer (B, new).
        last: what was removed; None forbids nothing.
    """
    grown = _with_answer(adapter, inputs, ids[:, :-1])
    alive_LBS = _alive_per_layer(adapter, grown, inputs["input_ids"].shape[1], last)
    steps = ids.shape[1]
    takes = inspect.signature(adapter.model.forward).parameters
    only = {"logits_to_keep": steps} if "logits_to_keep" in takes else {}
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(_forbidding(adapter, alive_LBS))
        counted = _Counted(grown["attention_mask"])
        hook = adapter.backbone.register_forward_pre_hook(counted, with_kwargs=True)
        stack.callback(hook.remove)
        logits_BSV: Tensor = adapter.model(**grown, use_cache=False, **only).logits
    return logits_BSV[:, -steps:]


def _with_answer(adapter: Adapter, inputs: Mapping[str, Any], ids: Tensor) -> dict[str, Any]:
    """The inputs with an answer behind every prompt."""
    grown, ones = dict(inputs), torch.ones_like(ids)
    mask_BS = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
    grown["input_ids"] = torch.cat([inputs["input_ids"], ids], dim=1)
    grown["attention_mask"] = torch.cat([mask_BS, ones.to(mask_BS)], dim=1)
    for name in TOKEN_TYPES:
        if name in grown:
            grown[name] = torch.cat([grown[name], ones * answer_type(adapter, name)], dim=1)
    return grown


def answer_type(adapter: Adapter, name: str) -> int:
    """The token type that makes an answer causal: 0 or, where 0 is a prefix, 1."""
    blocks = adapter.blocks({name: torch.zeros(1, 1, dtype=torch.long)})
    return 0 if blocks is None else int((blocks >= 0).any())


def _alive_per_layer(
    adapter: Adapter, grown: Mapping[str, Any], prompt: int, last: LastPrefill | None
) -> list[Tensor]:
    """Which tokens may be looked at at each decoder layer, boolean (B, S)."""
    alive_BS = grown["attention_mask"].bool()
    visual_BS = grown["input_ids"] == adapter.image_token_id
    if adapter.video_token_id is not None:
        visual_BS = visual_BS | (grown["input_ids"] == adapter.video_token_id)
    visual_BS[:, prompt:] = False
    per_layer = []
    for layer in range(len(adapter.decoder_layers)):
        if last is not None and layer in last.kept:
            alive_BS = alive_BS & ~visual_BS
            for row, kept in enumerate(last.kept[layer]):
                alive_BS[row, kept] = True
        per_layer.append(alive_BS)
    return per_layer


class _Counted:
    """Gives the decoder positions as `generate` counts them: from the first real token of a row."""

    def __init__(self, mask_BS: Tensor) -> None:
        self.place_BS = (mask_BS.long().cumsum(1) - 1).clamp(min=0)

    def __call__(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        given = kwargs.get("position_ids")
        if given is None or given.dim() == 2:
            start = 0 if given is None else int(given.min())
            kwargs["position_ids"] = self.place_BS.to(kwargs["inputs_embeds"].device) + start
        return args, kwargs


@contextmanager
def _forbidding(adapter: Adapter, alive_LBS: list[Tensor]) -> Iterator[None]:
    """Let every decoder layer look at living tokens only, inside the `with` block."""
    config = adapter.backbone.config
    changed: dict[str, Any] = {
        name: NO_WINDOW for name in SPANS.values() if getattr(config, name, None)
    }
    windows = {name: getattr(config, name) for name in changed}
    changed["_attn_implementation_internal"] = "eager"  # masks are built in full
    before = {name: getattr(config, name) for name in changed}
    with ExitStack() as stack:
        for layer, alive_BS in enumerate(alive_LBS):
            module = adapter.decoder_attention(layer)
            kind = SPANS.get(layer_type(config, layer), "")
            looking = _Forbidding(alive_BS, kind, windows.get(kind))
            stack.enter_context(attending(module, looking))
        for name, value in changed.items():
            setattr(config, name, value)
        try:
            yield
        finally:
            for name, value in before.items():
                setattr(config, name, value)


class _Forbidding:
    """The model's own eager attention; windows count the tokens that the layer would hold."""

    def __init__(self, alive_BS: Tensor, window: str, size: int | None) -> None:
        self.alive_BS, self.window, self.size = alive_BS, window, size

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any = None,
        **options: Any,
    ) -> Any:
        allowed = self._allowed(attention_mask).to(query.device)
        added = torch.zeros(allowed.shape, dtype=query.dtype, device=query.device)
        added.masked_fill_(~allowed, torch.finfo(query.dtype).min)
        eager = eager_of(module) or eager_attention_forward
        return eager(module, query, key, value, added, **options)

    def _allowed(self, mask_B1QK: Tensor) -> Tensor:
        alive_BS = self.alive_BS.to(mask_B1QK.device)
        length = alive_BS.shape[1]
        allowed = mask_B1QK if mask_B1QK.dtype == torch.bool else mask_B1QK == 0
        allowed = allowed[..., :length] & alive_BS[:, None, None, :]
        if self.size is not None:
            place_BS = alive_BS.long().cumsum(1) - 1
            asking, asked = place_BS[:, None, :, None], place_BS[:, None, None, :]
            if self.window == "sliding_window":
                allowed = allowed & (asking - asked < self.size)
            else:
                allowed = allowed & (asking // self.size == asked // self.size)
        # a masked token asks too, but nobody listens; it needs something to look at
        return allowed | torch.eye(length, dtype=torch.bool, device=allowed.device)


@contextmanager
def attending(module: nn.Module, function: Any) -> Iterator[None]:
    """Let one attention module compute by `function`, inside the `with` block only."""
    whole: Any = module
    name, original, functions = f"vflowopt_{id(function)}", whole.config, functions_of(module)
    whole.config = copy.copy(original)
    whole.config._attn_implementation_internal = name
    functions[name] = function
    try:
        yield
    finally:
        whole.config = original
        del functions[name]
