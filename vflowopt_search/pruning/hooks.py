"""Hooks that an exit stack takes off again, and which forward a layer's hook belongs to."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from torch import nn

from vflowopt_search.pruning.forward import RUN, Forward


def before(stack: ExitStack, module: nn.Module, hook: Any) -> None:
    """Call `hook` before every forward of `module`, until the stack ends."""
    stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)


def after(stack: ExitStack, module: nn.Module, hook: Any) -> None:
    """Call `hook` after every forward of `module`, also a failed one, until the stack ends."""
    stack.callback(module.register_forward_hook(hook, always_call=True).remove)


def forward_of(kwargs: dict[str, Any], newest: Forward | None) -> Forward | None:
    """The forward that a layer's call belongs to.

    The backward of gradient checkpointing runs layers again, maybe after a later forward began;
    the rotary embeddings are the same objects then.
    """
    rotary = kwargs.get("position_embeddings")
    mark = rotary[0] if isinstance(rotary, tuple) else rotary
    if mark is None:
        return newest
    if not hasattr(mark, RUN):
        setattr(mark, RUN, newest)
    found: Forward | None = getattr(mark, RUN)
    return found
