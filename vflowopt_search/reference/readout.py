"""One prefill of a batch, read at the last prompt token, and nothing computed beyond that.

Shape suffixes: B = samples, L = decoder layers, D = hidden width, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from vflowopt_search.adapters.base import Adapter
from vflowopt_search.adapters.feeding import feeding
from vflowopt_search.divergence import Readout
from vflowopt_search.pruning.last_token import last_token_only

NEEDS_LAYERS = frozenset({"flow"})
NEEDS_LOGITS = frozenset({"kl", "total_variation"})


def read_out(adapter: Adapter, inputs: Mapping[str, Any], *, layers: bool, logits: bool) -> Readout:
    """Run one forward without a cache and return what stands at the last prompt token.

    Args:
        adapter: the model; hooks of a pruning engine on it take effect.
        inputs: a prepared batch, left-padded.
        layers: read every decoder layer; else only the last one, after the final norm.
        logits: run the language-model head on the last token.

    Returns:
        hidden_BLD (L = 1 without `layers`) and logits_BV (V = 0 without `logits`), on the
        model's device and in its dtype.
    """
    seen: list[Tensor] = []
    last: list[Tensor] = []
    call: Any = adapter.model if logits else adapter.base
    extra = {"logits_to_keep": 1} if logits else {}
    with ExitStack() as stack, torch.inference_mode():
        if layers:
            for layer in adapter.decoder_layers[:-1]:
                stack.callback(layer.register_forward_hook(_keep_last(seen)).remove)
        stack.callback(adapter.backbone.register_forward_hook(_keep_last(last)).remove)
        stack.enter_context(last_token_only(adapter))
        given = stack.enter_context(feeding(adapter, inputs))
        output = call(**given, use_cache=False, **extra)
    hidden_BLD = torch.stack([*seen, last[0]], dim=1)
    logits_BV = output.logits[:, -1] if logits else hidden_BLD.new_zeros(len(hidden_BLD), 0)
    return Readout(hidden_BLD=hidden_BLD, logits_BV=logits_BV)


def _keep_last(into: list[Tensor]) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        hidden_BSD: Tensor = output if isinstance(output, Tensor) else output[0]
        into.append(hidden_BSD[:, -1].clone())

    return hook
