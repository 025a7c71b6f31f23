"""Bars on a terminal, lines otherwise."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.progress import Progress, TextColumn

from vflowopt_search.cli import progress
from vflowopt_search.cli.progress import Bars, Clock, Lines
from vflowopt_search.outcome import TrialReport


def report(
    done: int,
    total: int,
    best: float | None = 0.5,
    failure: str | None = None,
    textbook: str | None = None,
    *,
    others_follow: bool = False,
) -> TrialReport:
    return TrialReport(
        number=done - 1,
        outcome="failed" if failure else "complete",
        value=None if failure else best,
        best=best,
        samples_seen=4,
        seconds=0.1,
        done=done,
        total=total,
        textbook=textbook,
        failure=failure,
        others_follow=others_follow,
    )


class Time:
    """A clock that tests turn."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    time = Time()
    monkeypatch.setattr(progress, "time", time)
    return time


def lines() -> tuple[Lines, io.StringIO]:
    written = io.StringIO()
    return Lines(Console(file=written, width=60)), written


def test_time_left_is_by_the_pace_of_this_run_only(clock: Time) -> None:
    left = Clock()
    told = []
    for done in range(61, 67):  # 60 of an earlier run
        clock.now += 2.0
        told.append(left.left_of(report(done, 100)))
    assert told == ["", "", "", "", "0:01:10 left", "0:01:08 left"]  # 2 s each, 35 and 34 to go
    assert left.left_of(report(100, 100)) == ""


def test_time_left_follows_the_latest_trials(clock: Time) -> None:
    """The first ones are slow: much is done for the first time, and racing stops none of them."""
    left = Clock()
    for done in range(1, 31):
        clock.now += 60.0 if done <= 5 else 1.0
        told = left.left_of(report(done, 90))
    assert told == "0:01:00 left"


def test_textbook_trials_tell_nothing_of_the_others(clock: Time) -> None:
    """They are never stopped early, and come first."""
    left, told = Clock(), []
    for done in range(1, 14):
        textbook = "pyramid" if done <= 8 else None
        clock.now += 60.0 if textbook else 1.0
        told.append(left.left_of(report(done, 43, textbook=textbook)))
    assert told == [""] * 12 + ["0:00:30 left"]


def test_time_left_of_trials_that_are_measured_together(clock: Time) -> None:
    """They are told one after the other, in no time, once all of them are measured."""
    left, told = Clock(), []
    for done in range(1, 97):
        if done % 32 == 1:
            clock.now += 64.0
        textbook = "pyramid" if done <= 4 else None
        one = report(done, 128, textbook=textbook, others_follow=done % 32 != 0)
        told.append(left.left_of(one))
    assert told[:31] == [""] * 31
    assert told[31] == "0:03:12 left"  # 2 s each, 96 to go
    assert told[62:65] == ["0:02:10 left", "0:02:08 left", "0:02:06 left"]
    assert told[95] == "0:01:04 left"


def test_time_left_of_steps_that_come_in_batches(clock: Time) -> None:
    left = Clock()
    clock.now += 8.0
    assert left.left(32, 96) == "0:00:16 left"


def test_time_left_of_steps_that_begin_anew(clock: Time) -> None:
    left = Clock()
    for done in (48, 96):
        clock.now += 100.0
        left.left(done, 96)
    clock.now += 8.0
    assert left.left(32, 96) == "0:00:16 left"


def test_less_than_a_second_is_not_told(clock: Time) -> None:
    left = Clock()
    clock.now += 0.1
    assert left.left(32, 96) == ""


def test_nothing_is_said_of_the_time_left_before_the_first_step(clock: Time) -> None:
    assert Clock().left(0, 10) == ""


def test_a_line_every_few_trials(clock: Time) -> None:
    shown, written = lines()
    shown.phase("trials", 100)
    for done in range(1, 101):
        clock.now += 3.0
        shown.trial(report(done, 100))
    told = written.getvalue().splitlines()
    assert told[0] == "trials"
    assert [line.split(",")[0] for line in told[1:4]] == [
        "trials: 1/100",
        "trials: 5/100",
        "trials: 10/100",
    ]
    assert told[-1] == "trials: 100/100, best 0.50000"
    assert len(told) == 22


def test_a_line_after_a_long_silence(clock: Time) -> None:
    shown, written = lines()
    shown.phase("trials", 100)
    clock.now += 3.0
    shown.trial(report(1, 100))
    shown.trial(report(2, 100))
    clock.now += 31.0
    shown.trial(report(3, 100, best=None))
    assert written.getvalue().splitlines()[-1].startswith("trials: 3/100, no best yet")
    assert "2/100" not in written.getvalue()


def test_a_failed_trial_says_why(clock: Time) -> None:
    shown, written = lines()
    shown.trial(report(2, 100, failure="DivergenceError: [sample] 3 gave nan"))
    assert written.getvalue() == "trial 1 failed: DivergenceError: [sample] 3 gave nan\n"


def test_steps_have_lines(clock: Time) -> None:
    shown, written = lines()
    shown.phase("measuring")
    clock.now += 10.0
    shown.step(10, 20)
    shown.step(20, 20)
    assert written.getvalue() == "measuring\nmeasuring: 10/20, 0:00:10 left\nmeasuring: 20/20\n"


def test_few_steps_are_told_at_their_end(clock: Time) -> None:
    """A line for each buries the result, unless they are slow."""
    shown, written = lines()
    shown.phase("recording overlays")
    for done in range(1, 10):
        clock.now += 31.0 if done == 4 else 3.0
        shown.step(done, 9)
    told = [line.split(",")[0] for line in written.getvalue().splitlines()]
    name = "recording overlays"
    assert told == [name, f"{name}: 4/9", f"{name}: 9/9"]


def test_steps_that_take_no_time_are_told_at_their_end(clock: Time) -> None:
    shown, written = lines()
    clock.now += 10.0
    shown.phase("measuring", 256)
    for done in range(1, 257):
        clock.now += 0.007
        shown.step(done, 256)
    assert written.getvalue() == "measuring\nmeasuring: 256/256\n"


def test_the_same_is_said_once(clock: Time) -> None:
    """Other workers' trials are looked at again and again."""
    shown, written = lines()
    shown.phase("trials", 100)
    shown.phase("trials", 100)
    for done in (1, 1, 5, 5):
        clock.now += 40.0
        shown.trial(report(done, 100))
    assert [line.split(",")[0] for line in written.getvalue().splitlines()] == [
        "trials",
        "trials: 1/100",
        "trials: 5/100",
    ]
    shown, written = lines()
    shown.phase("measuring")
    for done in (8, 8, 24, 24, 8):  # what begins anew is said again
        clock.now += 40.0
        shown.step(done, 24)
    told = [line.split(",")[0] for line in written.getvalue().splitlines()[1:]]
    assert told == ["measuring: 8/24", "measuring: 24/24", "measuring: 8/24"]


def test_bars_show_best_and_time_left(clock: Time) -> None:
    columns = (TextColumn("{task.description}"), TextColumn("{task.fields[said]}"))
    console = Console(file=io.StringIO(), force_terminal=True)
    bars = Progress(*columns, console=console, auto_refresh=False)
    shown = Bars(bars)
    shown.phase("reading")
    shown.step(1, 1)
    shown.phase("trials", 12)
    for done in range(1, 6):
        clock.now += 1.0
        shown.trial(report(done, 12))
    task = bars.tasks[-1]
    assert (task.description, task.completed, task.total) == ("trials", 5, 12)
    assert task.fields["said"] == "best 0.50000, 0:00:07 left"


def test_a_terminal_gets_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), force_terminal=True)
    monkeypatch.setattr(progress, "stderr", lambda: console)
    with progress.display() as shown:
        assert isinstance(shown, Bars)
    monkeypatch.setattr(progress, "stderr", lambda: Console(file=io.StringIO()))
    with progress.display() as shown:
        assert isinstance(shown, Lines)
