"""What really happened in the last prefill; filled by the engine, read by users.

Shape suffixes: K = positions of one sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import local

from torch import Tensor


@dataclass(frozen=True)
class LastPrefill:
    """The pruning of one forward over a prompt, per sample (batch row).

    Attributes:
        visual_tokens: visual tokens of the unpruned prompt.
        text_tokens: all other tokens, padding left out.
        tokens_per_layer: visual tokens alive at every decoder layer, recycled ones counted.
        kept: stage layer → per sample the positions in the unpruned sequence (padding counted)
            of the visual tokens alive from that layer on, ascending.
        recycled: per sample, position of a recycled token → the positions merged into it.
        importance: per sample, the score of each visual token by which the first stage chose;
            nothing before that stage has run.
    """

    visual_tokens: list[int]
    text_tokens: list[int]
    tokens_per_layer: list[list[int]]
    kept: dict[int, list[Tensor]]
    recycled: list[dict[int, list[int]]]
    importance: list[Tensor]


class _Own(local):
    """How a thread reads its own last prefill; None before that."""

    read: Callable[[], LastPrefill] | None = None


class Applied:
    """A strategy at work on a model."""

    def __init__(self) -> None:
        self._own = _Own()
        self._newest: Callable[[], LastPrefill] | None = None

    @property
    def last(self) -> LastPrefill | None:
        """What happened in the last prefill of a prompt with images; None before the first.

        Where several threads use the model, each sees its own last one; a thread without one, and
        everybody once the strategy is off, sees the last of all.
        """
        read = self._own.read or self._newest
        return None if read is None else read()

    def freeze(self) -> None:
        """Hold `last` in plain values, so that nothing of the model is held."""
        last = self.last
        self._own = _Own()
        self._newest = None if last is None else lambda: last

    def watch(self, read: Callable[[], LastPrefill]) -> None:
        """Let `last` come from `read` (called by the engine; built only when somebody looks)."""
        self._own.read = self._newest = read
