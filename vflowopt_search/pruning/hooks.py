"""Hooks that an exit stack takes off again, and which forward a layer's hook belongs to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from threading import Lock, get_ident
from typing import Any

from torch import nn

from vflowopt_search.pruning.forward import RUN, Forward


def before(stack: ExitStack, module: nn.Module, hook: Any) -> None:
    """Call `hook` before every forward of `module`, until the stack ends."""
    stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)


def after(stack: ExitStack, module: nn.Module, hook: Any) -> None:
    """Call `hook` after every forward of `module`, also a failed one, until the stack ends."""
    stack.callback(module.register_forward_hook(hook, always_call=True).remove)


class Switched:
    """Hooks of modules that are on only while there is something for them to do.

    Even a hook that does nothing is felt in a decode step. They are on while any of the threads
    that share the model wants them.
    """

    def __init__(
        self, put: Callable[[ExitStack, nn.Module, Any], None], hooks: Mapping[nn.Module, Any]
    ) -> None:
        """Hooks that are off yet; `put` is `before` or `after`."""
        self._put, self._hooks = put, hooks
        self._on: ExitStack | None = None
        self._wanted: set[int] = set()
        self._lock = Lock()

    def switch(self, *, on: bool) -> None:
        """Say whether this thread wants the hooks on."""
        thread = get_ident()
        if on == (thread in self._wanted):
            return
        with self._lock:
            self._wanted ^= {thread}
            self._settle()

    def off(self) -> None:
        """Take the hooks off, whoever wants them."""
        with self._lock:
            self._wanted.clear()
            self._settle()

    def _settle(self) -> None:
        if self._wanted and self._on is None:
            self._on = ExitStack()
            for module, hook in self._hooks.items():
                self._put(self._on, module, hook)
        elif not self._wanted and self._on is not None:
            self._on.close()
            self._on = None


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
