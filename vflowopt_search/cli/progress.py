"""How far a long command is: a bar on a terminal, plain lines otherwise; always on stderr."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from vflowopt_search.cli.console import stderr

if TYPE_CHECKING:
    from vflowopt_search.outcome import TrialReport

_LINES = 20
"""About how many plain lines a phase of many steps prints; one of fewer, its end only."""
_SHORT = 2.0
"""Seconds before a phase has lasted long enough for plain lines but the one of its end."""
_ENOUGH = 5
"""Steps before anything is said of the time left."""
_RECENT = 20
"""Latest calls whose pace the time left goes by."""
_SILENCE = 30.0
"""Seconds after which a plain line is printed in any case."""


UNPRUNED = "measuring the unpruned model"
"""What that phase is called, where it is not known from an earlier run."""


class Display(Protocol):
    """Told what happens; shows it."""

    def phase(self, text: str, total: int | None = None) -> None:
        """A new part of the work begins; `total` steps are expected of it."""

    def step(self, done: int, total: int) -> None:
        """So many steps of the phase are done."""

    def trial(self, report: TrialReport) -> None:
        """A trial ended."""


def phased(shown: Display, text: str, total: int | None = None) -> Callable[[int, int], None]:
    """Steps of a phase that begins when it is first told of, and so not where there is no work."""
    begun = False

    def step(done: int, of: int) -> None:
        nonlocal begun
        if not begun:
            shown.phase(text, of if total is None else total)
            begun = True
        if done:
            shown.step(done, of)

    return step


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
    """Time left, by the latest pace of this run; what earlier runs did costs no time of this one.

    Nothing is said before a few steps are done: the first ones do much for the first time.
    """

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._marks: deque[tuple[float, int]] = deque(maxlen=_RECENT + 1)

    def left(self, done: int, total: int, *, earlier: int = 0, usual: bool = True) -> str:
        """What is left after `done` of `total`; empty at the end, and where it is not known yet.

        Args:
            done: steps that are done; fewer than before begin anew.
            total: steps in all.
            earlier: how many were done before this clock started, told with the first step.
            usual: whether the step took as long as those to come; the pace is of such ones.
        """
        self._begin(earlier)
        if done < self._marks[-1][1]:
            self._restart(self._marks[-1][0], 0)
        if usual:
            self._marks.append((time.monotonic(), done))
        else:
            self._restart(time.monotonic(), done)
        return self._told(done, total)

    def left_of(self, report: TrialReport) -> str:
        """What is left of a study; the first trial of this run tells how many others ran.

        Textbook trials come first and are never stopped early, so they say nothing of the others.
        Of trials that were measured together the last one that is told ends a step.
        """
        earlier = report.done - 1
        if report.others_follow:
            self._begin(earlier)
            return self._told(report.done, report.total)
        usual = report.textbook is None
        return self.left(report.done, report.total, earlier=earlier, usual=usual)

    def _begin(self, earlier: int) -> None:
        if not self._marks:
            self._marks.append((self._start, earlier))

    def _told(self, done: int, total: int) -> str:
        (began, first), (now, last) = self._marks[0], self._marks[-1]
        if done >= total or last - first < _ENOUGH:
            return ""
        seconds = round((now - began) / (last - first) * (total - done))
        return f"{timedelta(seconds=seconds)} left" if seconds else ""

    def _restart(self, now: float, done: int) -> None:
        self._marks.clear()
        self._marks.append((now, done))


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
    """A line when a phase begins and one when it ends; of a long one, one every few steps too."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._text = ""
        self._clock = Clock()
        self._began = self._printed = time.monotonic()
        self._said = ""
        self._first = True

    def phase(self, text: str, total: int | None = None) -> None:
        """A new part of the work begins; `total` steps are expected of it."""
        self._text = text
        self._clock = Clock()
        self._began = time.monotonic()
        self._print(text)
        self._first = True

    def step(self, done: int, total: int) -> None:
        """So many steps of the phase are done."""
        left = self._clock.left(done, total)
        if self._worth_a_line(done, total):
            self._print(f"{self._text}: {done}/{total}", left)

    def trial(self, report: TrialReport) -> None:
        """A trial ended."""
        left = self._clock.left_of(report)
        if report.failure is not None:
            self._print(f"trial {report.number} failed: {report.failure}")
        if self._worth_a_line(report.done, report.total):
            self._print(f"trials: {report.done}/{report.total}", said_of(report, left))

    def _print(self, what: str, *more: str) -> None:
        """A line, unless the one before told the same."""
        if what == self._said:
            return
        self._console.print(", ".join(filter(None, (what, *more))), markup=False, soft_wrap=True)
        self._said = what
        self._printed = time.monotonic()

    def _worth_a_line(self, done: int, total: int) -> bool:
        now = time.monotonic()
        if done == total or now - self._printed > _SILENCE:
            return True
        if total < _LINES or now - self._began < _SHORT:
            return False
        first, self._first = self._first, False
        return first or done % (total // _LINES) == 0
