"""Ctrl-C takes effect between two batches."""

from __future__ import annotations

import signal
from collections.abc import Sequence

import pytest

from vflowopt_search.interrupt import Interruptible, interruptible, uninterrupted
from vflowopt_search.strategy import Strategy


class Counted:
    """An objective that presses Ctrl-C at its second batch."""

    num_samples, metric = 4, "flow"
    batches = 0

    def measure(self, strategy: Strategy, indices: object) -> list[float]:
        if self.batches == 1:
            signal.raise_signal(signal.SIGINT)
        self.batches += 1
        return [0.0, 0.0]

    def measure_many(self, strategies: Sequence[Strategy], indices: object) -> list[list[float]]:
        return [self.measure(strategy, indices) for strategy in strategies]


def test_ctrl_c_waits_for_the_batch_and_a_second_one_does_not() -> None:
    before = signal.getsignal(signal.SIGINT)
    strategy, counted = Strategy(name="s", stages=({"layer": 0, "keep_ratio": 1.0},)), Counted()  # type: ignore[arg-type]
    with interruptible(counted) as objective:
        assert (objective.num_samples, objective.metric) == (4, "flow")
        assert objective.measure(strategy, [0, 1]) == [0.0, 0.0]
        with pytest.raises(KeyboardInterrupt):
            objective.measure(strategy, [2, 3])
        assert counted.batches == 2
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_nothing_is_measured_after_ctrl_c() -> None:
    counted = Counted()
    objective = Interruptible(counted)
    objective.pressed = True
    with pytest.raises(KeyboardInterrupt):
        objective.measure(Strategy(name="s", stages=({"layer": 0, "keep_ratio": 1.0},)), [0])  # type: ignore[arg-type]
    assert counted.batches == 0


def test_ctrl_c_waits_for_the_end_of_a_write() -> None:
    before, written = signal.getsignal(signal.SIGINT), []
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        signal.raise_signal(signal.SIGINT)
        written.append("whole")
    assert written == ["whole"]
    with uninterrupted():
        pass
    assert signal.getsignal(signal.SIGINT) is before
