"""The end of a search is killed or interrupted in each of its phases, and goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.command import ROOT, run
from tests.ended_search import QUESTIONS, End, arrange
from vflowopt_search import run_folder
from vflowopt_search.report.facts import missing
from vflowopt_search.report.runs import load_run

NAME = "quick"
BEST, PLAIN = "measuring the best on held-out samples", "comparing at the same budget"
OTHERS, ASKED = "comparing on held-out samples", "answering held-out questions"
OVERLAYS = "recording overlays"


class Ended(NamedTuple):
    """A moment in the end of a search, and what a report then says is missing."""

    phase: str
    step: int
    missing: str


ALL = "divergence on held-out samples"
ENDS = (
    Ended(BEST, 1, f"divergence of random and uniform and attention; {ALL}; accuracy; overlays"),
    Ended(PLAIN, 3, f"divergence of uniform and attention; {ALL} of random and uniform"),
    Ended(OTHERS, 3, f"measured {ALL} of uniform and attention; accuracy; overlays"),
    Ended(ASKED, 3, "measured accuracy; overlays"),
    Ended(OVERLAYS, 2, "measured overlays"),
)
"""Twelve samples of each half are measured in two steps, so most of these are between two."""
PRESSES = (
    Ended("reading held-out samples", 0, f"divergence of random and uniform and attention; {ALL}"),
    *ENDS[2:4],
    ENDS[-1],
)


def command(folder: Path) -> list[str | Path]:
    """A search of the shipped model for its own samples; the folder's name is the study's."""
    return ["search", "--trials", "2", "--samples", "12", "--output", folder / NAME]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VFLOWOPT_SEARCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def heard() -> Iterator[None]:
    """Ctrl-C is heard, also where the tests run in the background of a shell, which is deaf."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a search that nothing ended."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        arrange(patch, folder / "log")
        result = run(*command(folder))
    assert result.exit_code == 0, result.stderr
    return folder


def found(folder: Path) -> dict[str, Any]:
    """All that a search found, without its times and places."""
    summary = json.loads((folder / NAME / run_folder.SUMMARY).read_text())
    del summary["seconds"], summary["files"], summary["best"]["strategy_sha256"]
    for name in (run_folder.BASELINES, f"{run_folder.OVERLAYS}/overlays.json"):
        summary[name] = json.loads((folder / NAME / name).read_text())
    return dict(summary)


def told(folder: Path) -> str:
    """What a report says is missing."""
    return "measured " + "; ".join(missing(load_run(folder / NAME)))


def ran(folder: Path) -> list[str]:
    """What the model was run for."""
    return (folder / "log").read_text().splitlines()


def reported(folder: Path) -> str:
    """What `report` says besides the page, in which the same is said."""
    result = run("report", folder / NAME)
    assert result.exit_code == 0, result.stderr
    about = f"note: {NAME} has not measured "
    line = next((one for one in result.stderr.splitlines() if one.startswith(about)), about)
    said = line.removeprefix(about).removesuffix("; go on with:")
    assert said in (folder / NAME / run_folder.REPORT).read_text("utf-8")
    return f"measured {said}" if said else ""


def assert_nothing_ran_twice(folder: Path, whole: Path) -> None:
    """The model was run for the same as without an end, but for two overlays.

    The overlays are one result; the end came after two of them.
    """
    again = Counter(ran(folder)) - Counter(ran(whole))
    assert not Counter(ran(whole)) - Counter(ran(folder))
    assert again.total() == 2 and all(line.startswith("overlay") for line in again)


def test_an_unended_search_runs_its_model_for_each_thing_once(whole: Path) -> None:
    runs = ran(whole)
    answers = [line for line in runs if line.startswith("answer")]
    assert len(answers) == len(set(answers)) == 5 * QUESTIONS
    measured = sum(line.startswith("divergence") for line in runs)
    assert measured == (2 + 3 + 1 + 3) * 12 + 2  # two of them for pictures of the best so far
    assert found(whole)["complete"]
    assert reported(whole) == ""


def test_a_killed_end_loses_nothing(whole: Path, tmp_path: Path) -> None:
    """kill -9 in each phase, one after the other; the last run has the end of all."""
    for phase, step, left in ENDS:
        words = [tmp_path / "log", phase, step, int(signal.SIGKILL), *command(tmp_path)]
        killed = subprocess.run(
            [sys.executable, "-m", "tests.ended_search", *map(str, words)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert killed.returncode == -signal.SIGKILL, (phase, killed.stderr)
        assert left in told(tmp_path), phase
    with pytest.MonkeyPatch.context() as patch:
        arrange(patch, tmp_path / "log")
        assert run(*command(tmp_path)).exit_code == 0
    assert found(tmp_path) == found(whole)
    assert_nothing_ran_twice(tmp_path, whole)


@pytest.mark.usefixtures("heard")
def test_ctrl_c_in_each_phase_leaves_files_and_says_how_to_go_on(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = list(map(str, command(tmp_path)))
    monkeypatch.setattr(sys, "argv", ["vflowopt-search", *words])
    for phase, step, left in PRESSES:
        with pytest.MonkeyPatch.context() as patch:
            arrange(patch, tmp_path / "log", End(phase, step, signal.SIGINT))
            result = run(*words)
        assert result.exit_code == 130, (phase, result.stderr)
        assert "interrupted, best so far" in result.stderr
        assert result.stderr.splitlines()[-1] == f"  vflowopt-search {' '.join(words)}"
        summary = json.loads((tmp_path / NAME / run_folder.SUMMARY).read_text())
        assert summary["interrupted"] and not summary["complete"]
        before = (tmp_path / NAME / run_folder.REPORT).read_text("utf-8")
        assert left in reported(tmp_path), phase
        assert (tmp_path / NAME / run_folder.REPORT).read_text("utf-8") == before
        assert (tmp_path / NAME / run_folder.STRATEGY).is_file()
    with pytest.MonkeyPatch.context() as patch:
        arrange(patch, tmp_path / "log")
        assert run(*words).exit_code == 0
    assert found(tmp_path) == found(whole)
    assert_nothing_ran_twice(tmp_path, whole)
