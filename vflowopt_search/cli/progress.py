"""How far a long command is: a bar on a terminal, plain lines otherwise; always on stderr."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from vflowopt_search.cli.console import stderr

if TYPE_CHECKING:
    from vflowopt_search.outcome import TrialReport

_LINES = 20
"""About how many plain lines a phase of many steps prints."""
_SILENCE = 30.0
"""Seconds after which a plain line is printed in any case."""


class Display(Protocol):
    """Told what happens; shows it."""

    def phase(self, text: str, total: int | None = None) -> None:
        """A new part of the work begins; `total` steps are expected of it."""

    def step(self, done: int, total: int) -> None:
        """So many steps of the phase are done."""

    def trial(self, report: TrialReport) -> None:
        """A trial ended."""


@contextmanager
def display() -> Iterator[Display]:
    """Bars while the block runs, when stderr is a terminal; lines otherwise."""
    console = stderr()
    if not console.is_terminal:
        yield Lines(console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[said]}"),
    )
    with Progress(*columns, console=console) as progress:
        yield Bars(progress)


class Clock:
    """Time left, by the mean pace of this run; what earlier runs did costs no time of this one."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._earlier: int | None = None

    def left(self, done: int, total: int, *, earlier: int = 0) -> str:
        """What is left after `done` of `total`; empty at the end.

        The first call says how many were done `earlier`, before this clock started.
        """
        if self._earlier is None:
            self._earlier = earlier
        if done >= total or done <= self._earlier:
            return ""
        pace = (time.monotonic() - self._start) / (done - self._earlier)
        return f"{timedelta(seconds=round(pace * (total - done)))} left"

    def left_of(self, report: TrialReport) -> str:
        """What is left of a study; the first trial of this run tells how many others ran."""
        return self.left(report.done, report.total, earlier=report.done - 1)


def said_of(report: TrialReport, left: str) -> str:
    """`best 0.03121, 0:01:20 left`, with what there is to say."""
    best = "no best yet" if report.best is None else f"best {report.best:.5f}"
    return f"{best}, {left}" if left else best


class Bars:
    """One rich bar for each phase."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", visible=False, said="")
        self._clock = Clock()

    def phase(self, text: str, total: int | None = None) -> None:
        """A new part of the work begins; `total` steps are expected of it."""
        self._task = self._progress.add_task(text, total=total, said="")
        self._clock = Clock()

    def step(self, done: int, total: int) -> None:
        """So many steps of the phase are done."""
        self._progress.update(
            self._task, completed=done, total=total, said=self._clock.left(done, total)
        )

    def trial(self, report: TrialReport) -> None:
        """A trial ended."""
        said = said_of(report, self._clock.left_of(report))
        self._progress.update(self._task, completed=report.done, total=report.total, said=said)


class Lines:
    """A line when a phase begins, and then one every few steps."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._text = ""
        self._clock = Clock()
        self._printed = time.monotonic()

    def phase(self, text: str, total: int | None = None) -> None:
        """A new part of the work begins; `total` steps are expected of it."""
        self._text = text
        self._clock = Clock()
        self._print(text)

    def step(self, done: int, total: int) -> None:
        """So many steps of the phase are done."""
        left = self._clock.left(done, total)
        if self._worth_a_line(done, total):
            self._print(f"{self._text}: {done}/{total}{left and ', '}{left}")

    def trial(self, report: TrialReport) -> None:
        """A trial ended."""
        left = self._clock.left_of(report)
        if report.failure is not None:
            self._print(f"trial {report.number} failed: {report.failure}")
        if self._worth_a_line(report.done, report.total):
            self._print(f"trials: {report.done}/{report.total}, {said_of(report, left)}")

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, soft_wrap=True)
        self._printed = time.monotonic()

    def _worth_a_line(self, done: int, total: int) -> bool:
        silent = time.monotonic() - self._printed
        return done in (1, total) or done % max(1, total // _LINES) == 0 or silent > _SILENCE
