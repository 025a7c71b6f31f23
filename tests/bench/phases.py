"""Seconds by phase: a stopwatch, and where it is read in a trial of ours.

Seconds are the process's own (CPU time), so that other programs on the machine hardly matter; with
OMP_NUM_THREADS=1 they are what passes on an idle machine.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any

from vflowopt_search.objective import Objective
from vflowopt_search.pruning.vision import wrapped
from vflowopt_search.strategy import Strategy

MAPS, ROWS, FEEDING = "attention maps, once per study", "attention rows", "feeding"
IMPORTANCE, DECODER, REST = "importance, recycling", "pruned decoder", "divergence, rest"
SAMPLER = "sampler"

Seconds = dict[str, float]
"""Phase to seconds."""


class Phases:
    """Seconds spent so far, by phase; what is nested in a phase counts for itself alone."""

    def __init__(self, clock: Callable[[], float] = time.process_time) -> None:
        self._seconds: Seconds = defaultdict(float)
        self._clock, self._running, self._since = clock, list[str](), 0.0

    def begin(self, name: str) -> None:
        """From now on count for `name`."""
        self._charge()
        self._running.append(name)

    def end(self) -> None:
        """Go on with the phase in which the running one began, if there is one."""
        self._charge()
        self._running.pop()

    @contextmanager
    def during(self, name: str) -> Iterator[None]:
        """Count for `name` inside the `with` block."""
        self.begin(name)
        try:
            yield
        finally:
            self.end()

    def take(self) -> Seconds:
        """What was spent since the last time."""
        taken = dict(self._seconds)
        self._seconds.clear()
        return taken

    def _charge(self) -> None:
        now = self._clock()
        if self._running:
            self._seconds[self._running[-1]] += now - self._since
        self._since = now


def median_of(trials: Sequence[Seconds]) -> Seconds:
    """Median of every phase, the longest first."""
    names = dict.fromkeys(name for each in trials for name in each)
    middle = {name: median(each.get(name, 0.0) for each in trials) for name in names}
    return dict(sorted(middle.items(), key=lambda item: -item[1]))


class TimedObjective:
    """An objective whose measuring is timed by phases; what is none of them is `REST`."""

    def __init__(self, objective: Objective, phases: Phases) -> None:
        self.num_samples, self.metric = objective.num_samples, objective.metric
        self._objective, self._phases = objective, phases

    def measure(self, strategy: Strategy, indices: Sequence[int]) -> list[float]:
        """Divergence of each of these samples."""
        return self.measure_many([strategy], indices)[0]

    def measure_many(
        self, strategies: Sequence[Strategy], indices: Sequence[int]
    ) -> list[list[float]]:
        """Divergence of each of these samples under each strategy."""
        with self._phases.during(REST):
            return self._objective.measure_many(strategies, indices)


@contextmanager
def timed(objective: Objective, phases: Phases) -> Iterator[TimedObjective]:
    """The objective with a stopwatch on it, inside the `with` block.

    The decoder counts from its first layer to its end, drops before later layers included, as in
    the published loop; rotary angles and masks before that count for the importance.
    """
    adapter, source = objective.adapter, objective.source
    methods = ((source, "feed_rows", FEEDING), (source.maps, "attention", ROWS))
    turns = ((adapter.base, FEEDING), (adapter.backbone, IMPORTANCE))
    with ExitStack() as stack:
        for owner, name, phase in (*methods, (source.maps, "_compute", MAPS)):
            stack.enter_context(wrapped(owner, name, _around(phases, phase)))
        for module, phase in (*turns, (adapter.decoder_layers[0], DECODER)):
            hook = _turn(phases, phase, ends=module is not adapter.base)
            stack.callback(module.register_forward_pre_hook(hook).remove)
        stack.callback(adapter.backbone.register_forward_hook(lambda *_: phases.end()).remove)
        yield TimedObjective(objective, phases)


def _around(phases: Phases, name: str) -> Callable[..., Any]:
    def around(call: Callable[[], Any], given: Any) -> Any:
        with phases.during(name):
            return call()

    return around


def _turn(phases: Phases, name: str, *, ends: bool) -> Callable[..., None]:
    """A hook that begins a phase, after the end of the one before."""

    def hook(*_: Any) -> None:
        if ends:
            phases.end()
        phases.begin(name)

    return hook
