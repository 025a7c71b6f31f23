"""Ctrl-C while a study runs: it takes effect between two batches, never inside a write.

Python raises KeyboardInterrupt wherever it happens to be. In the middle of Optuna's bookkeeping
that leaves a trial half told, and Optuna 5.0 answers with an UnboundLocalError.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vflowopt_search.race import MeasuresStrategies
    from vflowopt_search.strategy import Strategy


class Interruptible:
    """An objective that raises KeyboardInterrupt before a batch once Ctrl-C was pressed."""

    def __init__(self, objective: MeasuresStrategies) -> None:
        self._objective = objective
        self.pressed = False

    @property
    def num_samples(self) -> int:
        """How many calibration samples there are."""
        return self._objective.num_samples

    @property
    def metric(self) -> str:
        """Name of the divergence."""
        return self._objective.metric

    def measure(self, strategy: Strategy, indices: Sequence[int]) -> Sequence[float]:
        """Divergence of each of these samples."""
        self._stop_if_pressed()
        values = self._objective.measure(strategy, indices)
        self._stop_if_pressed()
        return values

    def measure_many(
        self, strategies: Sequence[Strategy], indices: Sequence[int]
    ) -> Sequence[Sequence[float]]:
        """Divergence of each of these samples under each strategy."""
        self._stop_if_pressed()
        values = self._objective.measure_many(strategies, indices)
        self._stop_if_pressed()
        return values

    def _stop_if_pressed(self) -> None:
        if self.pressed:
            raise KeyboardInterrupt


@contextmanager
def interruptible(objective: MeasuresStrategies) -> Iterator[Interruptible]:
    """`objective` with Ctrl-C held back to its batches; a second Ctrl-C acts at once."""
    waiting = Interruptible(objective)
    if threading.current_thread() is not threading.main_thread():
        yield waiting  # Python delivers signals to the main thread only
        return
    before = signal.getsignal(signal.SIGINT)

    def press(number: int, frame: FrameType | None) -> None:
        waiting.pressed = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, press)
    try:
        yield waiting
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C waits for the end of the block, which writes to a study."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt
