"""A search that a signal ends at a given step, and that notes all that its model is run for.

`python -m tests.ended_search LOG PHASE STEP SIGNAL ARGUMENT...` runs one command of the program.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from vflowopt_search.cli import preparation
from vflowopt_search.cli.app import main
from vflowopt_search.cli.progress import Lines
from vflowopt_search.evaluate import answers
from vflowopt_search.evaluate.queue import item_of
from vflowopt_search.objective import Objective
from vflowopt_search.report import overlay_recording
from vflowopt_search.strategy import Strategy

QUESTIONS = 24


class End(NamedTuple):
    """The moment at which a signal comes: after `step` steps of a phase, or as it begins."""

    phase: str
    step: int
    signal: signal.Signals


NEVER = End("", 0, signal.SIGTERM)


def arrange(patch: pytest.MonkeyPatch, log: Path, end: End = NEVER) -> None:
    """Note each run of the model in `log`, ask few questions, and send the signal."""
    patch.setattr(preparation, "HELD_OUT_QUESTIONS", QUESTIONS)
    _note_measurements(patch, log)
    begin, step = Lines.phase, Lines.step
    now: list[Any] = ["", 0]

    def tell(self: Lines, done: int, total: int) -> None:
        step(self, done, total)
        now[1] = now[1] + 1
        if now == [end.phase, end.step]:
            signal.raise_signal(end.signal)

    def enter(self: Lines, text: str, total: int | None = None) -> None:
        begin(self, text, total)
        now[:] = [text, 0]
        if now == [end.phase, end.step]:
            signal.raise_signal(end.signal)

    patch.setattr(Lines, "step", tell)
    patch.setattr(Lines, "phase", enter)


def _note_measurements(patch: pytest.MonkeyPatch, log: Path) -> None:
    def note(*about: object) -> None:
        with log.open("a", encoding="utf-8") as file:
            file.write(" ".join(map(str, about)) + "\n")

    measure, answer = Objective.measure_many, answers._answer_together
    prefill = overlay_recording._prefill

    def measured(self: Objective, strategies: Sequence[Strategy], indices: Sequence[int]) -> Any:
        found = measure(self, strategies, indices)
        half = self.reference.key["calibration"][:8]
        for one in strategies:
            for index in indices:
                note("divergence", one.content_sha256(), half, index)
        return found

    def answered(asking: Any, source: Any, strategy: Strategy | None, rows: Any) -> Any:
        found = answer(asking, source, strategy, rows)
        name = "unpruned" if strategy is None else strategy.content_sha256()
        for row in rows:
            note("answer", name, item_of(source.maps.samples[row]))
        return found

    def recorded(objective: Objective, engine: Any, index: int) -> Any:
        note("overlay", index)
        return prefill(objective, engine, index)

    patch.setattr(Objective, "measure_many", measured)
    patch.setattr(answers, "_answer_together", answered)
    patch.setattr(overlay_recording, "_prefill", recorded)


if __name__ == "__main__":
    log, phase, step, number, *arguments = sys.argv[1:]
    sys.argv[1:] = arguments
    arrange(pytest.MonkeyPatch(), Path(log), End(phase, int(step), signal.Signals(int(number))))
    main()
