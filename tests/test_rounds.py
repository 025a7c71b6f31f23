"""Rounds: trials drawn and measured together, through crashes, Ctrl-C, errors and databases."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import InMemoryStorage

from tests.fake_study import FakeObjective, fake_run, story
from tests.test_storage import ROOT, only_study, wait_for
from vflowopt_search import recovery, sampling, trials
from vflowopt_search.errors import StudyError
from vflowopt_search.outcome import TrialReport
from vflowopt_search.processes import this_process
from vflowopt_search.race import race_step
from vflowopt_search.settings import StudySettings
from vflowopt_search.strategy import Strategy

HOST, _, START = this_process().rsplit(":", 2)
DEAD = f"{HOST}:999999999:{START}"


class Watched(FakeObjective):
    """Writes down what was measured together."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.calls: list[tuple[list[str], list[int]]] = []

    def measure_many(
        self, strategies: Sequence[Strategy], indices: Sequence[int]
    ) -> list[list[float]]:
        self.calls.append(([strategy.name for strategy in strategies], list(indices)))
        return super().measure_many(strategies, indices)


def outcomes(study: optuna.Study) -> list[str]:
    return [trials.outcome_of(trial) for trial in study.trials]


@pytest.mark.parametrize(("num_samples", "step"), [(1, 8), (24, 8), (64, 8), (65, 9), (256, 32)])
def test_the_step_between_two_looks_depends_on_the_samples_alone(
    num_samples: int, step: int
) -> None:
    assert race_step(num_samples) == step


def test_a_round_is_measured_together_and_hopeless_trials_drop_out() -> None:
    objective = Watched()
    outcome = fake_run(objective, total=14, trials_per_batch=4)
    rounds: list[list[tuple[list[str], list[int]]]] = []
    for names, samples in objective.calls:
        if not rounds or not set(names) <= set(rounds[-1][0][0]):
            rounds.append([])
        rounds[-1].append((names, samples))
    first = [calls[0][0] for calls in rounds]
    slots = [range(4), range(4, 8), range(8, 12), range(12, 14)]
    assert first == [[f"fake-{slot}" for slot in each] for each in slots]
    assert [len(names) for names, _ in rounds[0]] == [4, 4, 4]  # nobody to compare with yet
    shrinking = [[len(names) for names, _ in calls] for calls in rounds]
    assert all(sizes == sorted(sizes, reverse=True) for sizes in shrinking)
    assert any(sizes[-1] < sizes[0] for sizes in shrinking)
    for calls in rounds:
        seen = [sample for _, samples in calls for sample in samples]
        assert len(seen) == len(set(seen))  # one order for all
    assert outcome.finished and len(outcome.study.trials) == 14
    assert set(outcomes(outcome.study)) == {"complete", "stopped"}


@pytest.mark.parametrize(("total", "size"), [(1, 8), (7, 3), (9, 3), (5, 4)])
def test_the_total_is_exact(total: int, size: int) -> None:
    objective, reports = Watched(num_samples=9), list[TrialReport]()
    outcome = fake_run(objective, total=total, trials_per_batch=size, on_trial=reports.append)
    assert outcome.finished and len(outcome.study.trials) == total
    assert [report.done for report in reports] == list(range(1, total + 1))
    assert [report.number for report in reports] == list(range(total))
    assert max(len(names) for names, _ in objective.calls) == min(total, size)
    ends = [report.done for report in reports if not report.others_follow]
    assert ends == sorted({*range(size, total, size), total})


def test_every_round_sees_the_samples_in_an_order_of_its_own() -> None:
    class Listening(FakeObjective):
        def measure_many(
            self, strategies: Sequence[Strategy], indices: Sequence[int]
        ) -> list[list[float]]:
            seen.extend(indices)
            return super().measure_many(strategies, indices)

    seen: list[int] = []
    assert fake_run(Listening(), total=8, racing=False, trials_per_batch=2).finished
    rounds = [tuple(seen[start : start + 24]) for start in range(0, len(seen), 24)]
    assert all(sorted(one) == list(range(24)) for one in rounds)
    assert len(set(rounds)) == len(rounds) == 4


def test_trials_know_their_share_of_the_time() -> None:
    outcome = fake_run(FakeObjective(num_samples=8, delay=0.05), total=4, trials_per_batch=4)
    seconds = [trial.user_attrs[trials.SECONDS] for trial in outcome.study.trials]
    assert len(set(seconds)) == 1 and 0.05 <= seconds[0] < 0.1


def test_same_seed_same_study_and_another_size_another() -> None:
    three = [fake_run(trials_per_batch=3, seed=2).study for _ in range(2)]
    assert story(three[0]) == story(three[1])
    assert story(three[0]) != story(fake_run(trials_per_batch=2, seed=2).study)
    drawn = [tuple(trial.params.items()) for trial in three[0].trials]
    assert len(set(drawn)) == len(drawn)


class Killed(BaseException):
    """The process is dead: nothing is written any more."""


class Dying(InMemoryStorage):
    """A storage whose process dies before the write of some number."""

    def __init__(self, writes: int) -> None:
        super().__init__()
        self.left = writes

    def count(self) -> None:
        if self.left <= 0:
            raise Killed
        self.left -= 1


def _counted(name: str) -> Any:
    write = getattr(InMemoryStorage, name)

    def counted(self: Dying, *args: Any, **kwargs: Any) -> Any:
        self.count()
        return write(self, *args, **kwargs)

    return counted


for _name in (
    "create_new_trial",
    "set_trial_param",
    "set_trial_state_values",
    "set_trial_intermediate_value",
    "set_trial_user_attr",
    "set_trial_system_attr",
):
    setattr(Dying, _name, _counted(_name))

FEW = 10


@pytest.fixture(scope="module")
def undisturbed() -> list[tuple[Any, ...]]:
    return story(fake_run(FakeObjective(num_samples=FEW), total=8, trials_per_batch=3).study)


def killed_and_resumed(writes: Sequence[int], patch: pytest.MonkeyPatch) -> optuna.Study:
    """The study of a process that dies after so many writes, and of those that go on with it."""
    storage = Dying(0)
    with patch.context() as other_process:
        other_process.setattr(sampling, "this_process", lambda: DEAD)
        other_process.setattr(recovery, "this_process", lambda: DEAD)
        for left in writes:
            storage.left = left
            with pytest.raises(Killed):
                fake_run(FakeObjective(num_samples=FEW), storage, total=8, trials_per_batch=3)
    storage.left = sys.maxsize
    outcome = fake_run(FakeObjective(num_samples=FEW), storage, total=8, trials_per_batch=3)
    assert outcome.finished
    return outcome.study


@pytest.mark.parametrize("writes", [*range(2, 220, 9), (60, 25), (200, 3, 40)])
def test_killed_anywhere_and_resumed_it_is_the_same_study(
    writes: int | tuple[int, ...],
    undisturbed: list[tuple[Any, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    each = (writes,) if isinstance(writes, int) else writes
    study = killed_and_resumed(each, monkeypatch)
    assert story(study) == undisturbed
    assert set(outcomes(study)) <= {"complete", "stopped", "abandoned"}


def test_kill_9_in_the_middle_of_a_round(tmp_path: Path) -> None:
    journal = tmp_path / "study.journal"
    command = [sys.executable, "-m", "tests.fake_study", str(journal), "9", "0.05", "4"]
    process = subprocess.Popen(command, cwd=ROOT)
    wait_for(journal, 200, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    counted = trials.num_counted(only_study(journal).trials)
    assert counted < 9
    outcome = fake_run(storage=journal, total=9, trials_per_batch=4)
    assert outcome.finished and trials.num_counted(outcome.study.trials) == 9
    assert outcomes(outcome.study).count("abandoned") >= 1
    assert "running" not in outcomes(outcome.study)
    assert story(outcome.study) == story(fake_run(total=9, trials_per_batch=4).study)


@pytest.mark.parametrize("call", [1, 3, 5, 8])
def test_ctrl_c_costs_the_round_and_nothing_else(call: int) -> None:
    class Pressed(Watched):
        def measure_many(
            self, strategies: Sequence[Strategy], indices: Sequence[int]
        ) -> list[list[float]]:
            if len(self.calls) == call - 1:
                raise KeyboardInterrupt
            return super().measure_many(strategies, indices)

    storage = InMemoryStorage()
    outcome = fake_run(Pressed(), storage, trials_per_batch=3)
    assert outcome.interrupted and not outcome.finished
    found = outcomes(outcome.study)
    assert found.count("abandoned") == found.count("waiting") == 3 and "running" not in found
    resumed = fake_run(storage=storage, trials_per_batch=3)
    assert resumed.finished
    assert story(resumed.study) == story(fake_run(trials_per_batch=3).study)


def test_another_size_is_refused_on_an_old_study() -> None:
    storage = InMemoryStorage()
    fake_run(storage=storage, total=2)
    said = re.escape("trials_per_batch 1 but is resumed with trials_per_batch 2")
    with pytest.raises(StudyError, match=said):
        fake_run(storage=storage, total=4, trials_per_batch=2)
    with pytest.raises(StudyError, match="trials_per_batch is 0 but must be at least 1"):
        StudySettings("x", retain=0.1, trials=1, trials_per_batch=0)


def test_a_round_in_a_database_is_the_same_study(tmp_path: Path) -> None:
    url, few = f"sqlite:///{tmp_path}/study.db", FakeObjective(num_samples=8)
    fake_run(few, url, total=2, trials_per_batch=2)
    outcome = fake_run(few, url, total=4, trials_per_batch=2)
    expected = fake_run(few, total=4, trials_per_batch=2).study
    assert story(outcome.study) == story(expected)
    storage = outcome.study._storage
    alive = storage._backend.engine.connect().exec_driver_sql(  # type: ignore[attr-defined]
        "select count(*) from trial_heartbeats"
    )
    assert alive.scalar() == 4
