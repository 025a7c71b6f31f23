"""Hooks that an exit stack takes off again, and which forward a layer's hook belongs to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from threading import Lock, RLock, get_ident
from threading import enumerate as enumerate_threads
from typing import Any, NoReturn

import torch
from torch import nn

from vflowopt_search.errors import UnsupportedError
from vflowopt_search.pruning.forward import RUN, Forward


def before(stack: ExitStack, module: nn.Module, hook: Any) -> None:
    """Call `hook` before every forward of `module`, until the stack ends."""
    stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)


def after(stack: ExitStack, module: nn.Module, hook: Any) -> None:
    """Call `hook` after every forward of `module`, also a failed one, until the stack ends."""
    stack.callback(module.register_forward_hook(hook, always_call=True).remove)


class OfOneModel:
    """What hooks belong to: in a copy of their model they would go on reading the first one."""

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise UnsupportedError(
            "a pruned model cannot be copied or pickled, for its hooks belong to this one; take "
            "the strategy off, copy, and prune the copy (`save_pretrained` works as it is)"
        )


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
        self._wanted: set[int | None] = set()
        self._lock = Lock()

    def switch(self, *, on: bool) -> None:
        """Say whether this thread wants the hooks on."""
        thread = get_ident()
        if on == (thread in self._wanted) and (on or not self._wanted):
            return
        with self._lock:
            # a thread that ended in the middle of something wants nothing any more
            self._wanted &= {each.ident for each in enumerate_threads()}
            self._wanted = self._wanted | {thread} if on else self._wanted - {thread}
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


class _Eagerness:
    """How many engines of this process want compiled models to run eagerly."""

    def __init__(self) -> None:
        # the garbage collector may end a block of another engine while this thread begins one
        self._lock, self._count, self._stance = RLock(), 0, ExitStack()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Compiled code runs eagerly inside the `with` block, in all of the process.

        A graph that was compiled before has no hooks and would prune nothing, in silence; which
        compiled functions call the model, nobody knows. Blocks of several engines may end in any
        order.
        """
        with self._lock:
            self._count += 1
            if self._count == 1:
                self._stance.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            yield
        finally:
            with self._lock:
                self._count -= 1
                if self._count == 0:
                    self._stance.close()


eagerly = _Eagerness()


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
