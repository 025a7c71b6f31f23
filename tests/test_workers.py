"""Processes that are started, stopped and told of where one ends early."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.other_processes import wait_until
from vflowopt_search.errors import StudyError
from vflowopt_search.workers import THREADS, Workers, threads_each, with_threads

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.fixture
def hears_ctrl_c() -> Iterator[None]:
    """In the background of a script, SIGINT is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def ignores_ctrl_c() -> Iterator[None]:
    """As in the background of a script."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)


def some(tasks: dict[str, str], folder: Path, threads: int | None = None) -> Workers:
    told = {name: (what, str(folder / name)) for name, what in tasks.items()}
    return Workers("tests.some_worker", told, threads)


def sentences(workers: Workers) -> list[str]:
    told: list[str] = []

    def all_ended() -> bool:
        told.extend(workers.ended())
        return not workers.running

    wait_until(all_ended)
    return sorted(told)


def test_who_ends_early_is_told_with_the_reason(tmp_path: Path) -> None:
    tasks = {"one": "end", "two": "fail", "three": "fail silently", "four": "die"}
    with some(tasks, tmp_path) as workers:
        assert workers.running
        assert sentences(workers) == [
            "four was killed (SIGKILL); the trial that it ran is tried again, and the others go on",
            "three ended (exit code 3); the others go on",
            "two ended (the model has no layer 9); the others go on",
        ]
        assert workers.ended() == []


@pytest.mark.parametrize("told", ["hears_ctrl_c", "ignores_ctrl_c"])
def test_at_the_end_of_the_block_workers_stop_as_after_ctrl_c(
    told: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(told)
    before = time.monotonic()
    with some({"one": "go on", "two": "go on"}, tmp_path) as workers:
        wait_until((tmp_path / "one").exists)
        wait_until((tmp_path / "two").exists)
    assert time.monotonic() - before < 30
    assert [(tmp_path / name).read_text() for name in ("one", "two")] == ["stopped", "stopped"]
    assert not workers.running and workers.ended() == []


@pytest.mark.usefixtures("hears_ctrl_c")
def test_a_second_ctrl_c_kills_who_does_not_stop(tmp_path: Path) -> None:
    def is_deaf() -> bool:
        return (tmp_path / "one").exists() and (tmp_path / "one").read_text() == "deaf"

    before = time.monotonic()
    with pytest.raises(KeyboardInterrupt), some({"one": "be deaf"}, tmp_path):
        wait_until(is_deaf)
        threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGINT]).start()
    assert time.monotonic() - before < 30


def test_no_worker_outlives_the_process_that_started_it(tmp_path: Path) -> None:
    script = (
        "import sys, time\n"
        "from vflowopt_search.workers import Workers\n"
        "with Workers('tests.some_worker', {'one': ('go on', sys.argv[1])}, None):\n"
        "    time.sleep(60)\n"
    )
    note = tmp_path / "one"
    parent = subprocess.Popen([sys.executable, "-c", script, str(note)], cwd=ROOT)
    wait_until(note.exists)
    assert note.read_text() != "stopped"
    parent.kill()
    parent.wait()
    assert wait_until(lambda: note.read_text() == "stopped")


def test_workers_share_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(THREADS, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)))
    assert [threads_each(count) for count in (1, 2, 5, 12, 50)] == [None, 6, 2, 1, 1]
    with some({"one": "end"}, tmp_path, threads_each(4)) as workers:
        sentences(workers)
    assert (tmp_path / "one").read_text() == "3"
    monkeypatch.setenv(THREADS, "7")
    assert threads_each(4) is None  # as the user says


def test_torch_has_its_threads_back_afterwards() -> None:
    before = torch.get_num_threads()
    with with_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    with with_threads(None):
        assert torch.get_num_threads() == before
    assert torch.get_num_threads() == before


def test_workers_that_cannot_be_started_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = subprocess.Popen

    def limited(*args: object, **kwargs: object) -> subprocess.Popen[bytes]:
        started.append(start(*args, **kwargs))  # type: ignore[call-overload]
        if len(started) == 1:
            return started[0]
        started.pop().communicate()
        raise BlockingIOError(11, "Resource temporarily unavailable")

    started: list[subprocess.Popen[bytes]] = []
    monkeypatch.setattr(subprocess, "Popen", limited)
    said = r"2 more processes cannot be started \(Resource temporarily unavailable\); ask for fewer"
    with pytest.raises(StudyError, match=said), some({"one": "go on", "two": "end"}, tmp_path):
        pass
    assert started[0].poll() is not None
