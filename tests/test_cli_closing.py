"""What the end of a search calls complete, and what of an earlier run it takes over."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from tests.command import World, run
from tests.fake_study import CONTEXT, fake_run
from vflowopt_search import processes, run_folder, trials
from vflowopt_search.calibration.samples import CalibrationSet, fingerprint
from vflowopt_search.cli import held_out, preparation
from vflowopt_search.cli.comparison import Comparison, Row
from vflowopt_search.cli.progress import Lines
from vflowopt_search.cli.summary import earlier_comparison
from vflowopt_search.outcome import StudyOutcome, context_sha256
from vflowopt_search.report.facts import missing
from vflowopt_search.report.runs import load_run
from vflowopt_search.report.words import FOUND
from vflowopt_search.storage import open_storage

PLAIN = ("random", "uniform", "attention")


@pytest.fixture
def other_process() -> Iterator[str]:
    """Name of a process that lives, and measures nothing."""
    program = "import sys; sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as other:
        host = processes.this_process().rsplit(":", 2)[0]
        yield f"{host}:{other.pid}:{processes._start(other.pid)}"
        other.kill()


def summary_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / run_folder.SUMMARY).read_text()))


def held_out_of(folder: Path) -> dict[str, float | None]:
    return {row["name"]: row["held_out"] for row in summary_of(folder)["comparison"]}


def searched(world: World, folder: Path, num_trials: int, *more: str) -> None:
    """Run a search to its end."""
    result = run(*world.search(folder, "--trials", str(num_trials), *more))
    assert result.exit_code == 0, result.stderr


def test_a_run_is_not_complete_while_another_worker_holds_a_trial(
    world: World, tmp_path: Path, other_process: str
) -> None:
    folder = tmp_path / "mine"
    searched(world, folder, 1, "--no-held-out")
    assert summary_of(folder)["complete"]
    storage = open_storage(folder / run_folder.JOURNAL)
    study = optuna.load_study(study_name="mine", storage=storage)
    held = study.ask()
    held.set_user_attr(trials.OWNER, other_process)
    searched(world, folder, 2, "--no-held-out")
    assert not summary_of(folder)["complete"]  # nothing is missing but that trial
    searched(world, folder, 2)
    told = summary_of(folder)
    assert (told["finished"], told["complete"]) == (False, False)
    assert held_out_of(folder)[FOUND] is None
    assert all(held_out_of(folder)[name] for name in PLAIN)
    held.set_user_attr(trials.FAILURE, "it had no luck")
    study.tell(held, state=TrialState.FAIL)
    assert missing(load_run(folder)) == ["divergence on held-out samples of found"]
    searched(world, folder, 2)
    told = summary_of(folder)
    assert (told["finished"], told["complete"]) == (True, True)
    assert held_out_of(folder)[FOUND] == told["best"]["held_out"] > 0
    assert missing(load_run(folder)) == []


def test_a_best_that_was_wrongly_called_complete_is_measured(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    searched(world, folder, 1, "--no-held-out")
    told = summary_of(folder)
    told["wanted"] = ["divergence", "held_out", "overlays"]
    (folder / run_folder.SUMMARY).write_text(json.dumps(told))
    searched(world, folder, 1)
    assert summary_of(folder)["complete"]
    assert all(held_out_of(folder).values())


def test_plain_strategies_on_other_samples_are_forgotten(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No table shows the best on some held-out samples beside the others on some others."""
    folder = tmp_path / "mine"
    searched(world, folder, 1)
    before = held_out_of(folder)
    told = summary_of(folder)
    (folder / run_folder.SUMMARY).write_text(json.dumps(told | {"complete": False}))
    half, enter = preparation.held_out_half, Lines.phase

    def fewer(*given: Any) -> CalibrationSet:
        samples = half(*given)
        assert samples is not None
        left = samples.samples[:2]
        return replace(samples, samples=left, sha256=fingerprint(left))

    def interrupt(self: Lines, text: str, total: int | None = None) -> None:
        enter(self, text, total)
        if text == "comparing on held-out samples":
            raise KeyboardInterrupt

    monkeypatch.setattr(held_out, "held_out_half", fewer)
    with monkeypatch.context() as patch:
        patch.setattr(Lines, "phase", interrupt)
        assert run(*world.search(folder, "--trials", "1")).exit_code == 130
    found = held_out_of(folder)
    assert found.pop(FOUND) not in (None, before[FOUND])
    assert found == dict.fromkeys(PLAIN)
    searched(world, folder, 1)
    after = held_out_of(folder)
    assert all(after[name] not in (None, before[name]) for name in (FOUND, *PLAIN))


ROWS = (Row(FOUND, 0.25, 0.1), Row("random", 0.25, 0.2))


@pytest.fixture(scope="module")
def outcome() -> StudyOutcome:
    return fake_run(total=4)


def earlier(folder: Path, outcome: StudyOutcome, **changes: Any) -> Comparison:
    """What is taken over from a whole summary of this study, but for some changes to it."""
    from vflowopt_search.cli.summary import _fingerprint

    assert outcome.best is not None
    told = {
        "best": {"strategy_sha256": _fingerprint(outcome.best)},
        "comparison": [vars(row) for row in ROWS],
        "wanted": ["divergence", "overlays"],
        "complete": True,
        "context_sha256": context_sha256(outcome.study),
    }
    (folder / run_folder.SUMMARY).write_text(json.dumps(told | changes))
    return earlier_comparison(folder, outcome)


def test_a_summary_of_this_study_is_taken_over(tmp_path: Path, outcome: StudyOutcome) -> None:
    assert earlier(tmp_path, outcome) == Comparison(ROWS, ("divergence", "overlays"), complete=True)
    assert not earlier(tmp_path, replace(outcome, finished=False)).complete
    assert not earlier(tmp_path, outcome, wanted=["divergence", "held_out"]).complete
    other_best = earlier(tmp_path, outcome, best={"strategy_sha256": "of another"})
    assert (other_best.rows, other_best.complete) == (ROWS[1:], False)


def test_a_summary_of_another_study_is_not(tmp_path: Path, outcome: StudyOutcome) -> None:
    """Its strategies may have the same names, and even be the same."""
    other = fake_run(total=1, context=CONTEXT | {"calibration_sha256": "of others"}).study
    changed = earlier(tmp_path, outcome, context_sha256=context_sha256(other))
    assert changed == Comparison()
