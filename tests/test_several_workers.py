"""Several workers on one study: what one is quicker at, the others leave; the total is exact."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.samplers import BaseSampler, RandomSampler
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from tests.fake_study import Disturbed, FakeObjective, fake_run, story
from tests.other_processes import ended_process, running_process
from tests.test_rounds import outcomes
from tests.test_signs import ELSEWHERE
from vflowopt_search import sampling, trials
from vflowopt_search.processes import this_process
from vflowopt_search.recovery import num_running_elsewhere, recover, recover_others
from vflowopt_search.sampling import SlotSampler
from vflowopt_search.storage import open_storage

ROOT = Path(__file__).parents[1]
FEW = 9


class Raced(InMemoryStorage):
    """A storage in which another process is quicker, once, at one kind of write."""

    def __init__(self) -> None:
        super().__init__()
        self.another: Callable[[], None] | None = None
        self.before = ""

    def _another_is_quicker(self, write: str) -> None:
        if self.another is not None and write == self.before:
            another, self.another = self.another, None
            another()

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._another_is_quicker(key)
        super().set_trial_user_attr(trial_id, key, value)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        self._another_is_quicker("trial")
        return super().create_new_trial(study_id, template_trial)


def left_behind(storage: optuna.storages.BaseStorage, owner: str, total: int = 3) -> optuna.Study:
    """A study of some trials and one more that its owner left running."""
    study = fake_run(FakeObjective(num_samples=FEW), storage, total=total).study
    trial = study.ask()
    trial.set_user_attr(trials.OWNER, owner)
    trial.set_user_attr(trials.SLOT, total)
    return study


def undisturbed(total: int) -> list[tuple[Any, ...]]:
    return story(fake_run(FakeObjective(num_samples=FEW), total=total).study)


@pytest.mark.parametrize("write", [trials.DEATHS, trials.ABANDONED, "trial"])
def test_two_that_recover_the_same_trial_at_once_try_it_once(write: str) -> None:
    storage = Raced()
    study = left_behind(storage, ended_process())
    storage.before, storage.another = write, lambda: recover(study, storage)
    outcome = fake_run(FakeObjective(num_samples=FEW), storage, total=8)
    assert storage.another is None
    assert outcome.finished
    assert {"running", "waiting"}.isdisjoint(outcomes(outcome.study))
    assert trials.num_counted(outcome.study.trials) == 8
    assert story(outcome.study) == undisturbed(8)
    recover(outcome.study, storage)
    assert "waiting" not in outcomes(outcome.study)  # what was tried twice is not tried again


def test_workers_that_ask_for_the_last_trial_at_once_measure_it_once() -> None:
    storage = Raced()
    study = fake_run(FakeObjective(num_samples=FEW), storage, total=5).study

    def another_asks() -> None:
        with running_process() as owner:
            others = study.ask()
            others.set_user_attr(trials.OWNER, owner)
            others.set_user_attr(trials.SLOT, 5)
        others.set_user_attr(trials.PER_SAMPLE, [0.5] * FEW)
        study.tell(others, 0.5)

    storage.before, storage.another = "trial", another_asks
    outcome = fake_run(FakeObjective(num_samples=FEW), storage, total=6)
    assert outcome.finished
    assert trials.num_counted(outcome.study.trials) == 6
    assert outcomes(outcome.study)[6:] == ["abandoned"]
    recover(outcome.study, storage)
    assert "waiting" not in outcomes(outcome.study)  # what was needless is not tried again
    outcome = fake_run(FakeObjective(num_samples=FEW), storage, total=8)
    slots = [t.user_attrs[trials.SLOT] for t in outcome.study.trials if trials.counts(t)]
    assert sorted(slots) == list(range(8))  # the slot that was left is drawn later


def test_a_trial_is_signed_before_anything_that_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(RandomSampler):
        def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
            stored = study.get_trials()[trial.number]
            owners.append(stored.user_attrs.get(trials.OWNER))

    def fresh(self: SlotSampler, slot: int) -> BaseSampler:
        assert slot == 0 or len(owners) == slot
        return Slow(seed=slot)

    owners: list[str | None] = []
    monkeypatch.setattr(sampling.SlotSampler, "_fresh", fresh)
    fake_run(FakeObjective(num_samples=FEW), total=4)
    assert owners == [this_process()] * 4


def test_a_worker_that_dies_is_replaced_while_the_others_run(tmp_path: Path) -> None:
    storage = open_storage(tmp_path / "study.journal")

    def another_dies_over_a_trial() -> None:
        study = optuna.load_study(study_name="fake", storage=storage, sampler=RandomSampler(seed=0))
        trial = study.ask()
        trial.set_user_attr(trials.OWNER, ended_process())
        trial.set_user_attr(trials.SLOT, trial.number)
        trial.set_user_attr(trials.BEGUN, True)

    disturbed = Disturbed(num_samples=FEW, happens=another_dies_over_a_trial)
    outcome = fake_run(disturbed, storage, total=8)
    assert outcome.finished
    assert outcomes(outcome.study).count("abandoned") == 1
    assert {"running", "waiting"}.isdisjoint(outcomes(outcome.study))
    assert trials.num_counted(outcome.study.trials) == 8
    done = filter(trials.counts, outcome.study.trials)
    assert sorted(trial.user_attrs[trials.SLOT] for trial in done) == list(range(8))


@pytest.mark.parametrize(("seconds", "outcome"), [(30, "running"), (90, "abandoned")])
def test_a_trial_that_nobody_signed_is_given_up_while_others_run(
    seconds: int, outcome: str
) -> None:
    storage = InMemoryStorage()
    study = fake_run(FakeObjective(num_samples=FEW), storage, total=3).study
    unsigned = optuna.create_trial(state=TrialState.RUNNING)
    unsigned.datetime_start = datetime.now() - timedelta(seconds=seconds)
    study.add_trial(unsigned)
    recover_others(study, storage)
    assert trials.outcome_of(study.trials[3]) == outcome


@pytest.fixture
def database(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/study.db"


@contextmanager
def worker_elsewhere(url: str, total: int) -> Iterator[subprocess.Popen[bytes]]:
    """A worker on another host that measures the first trial for long; killed at the end."""
    command = [sys.executable, "-c", ELSEWHERE, url, str(total), "60"]
    with subprocess.Popen(command, cwd=ROOT) as worker:
        try:
            deadline = time.monotonic() + 60
            while not _measures(url):
                assert worker.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
            yield worker
        finally:
            worker.kill()


def _measures(url: str) -> bool:
    try:
        study = optuna.load_study(study_name="fake", storage=open_storage(url))
    except KeyError:
        return False
    return any(trials.BEGUN in trial.user_attrs for trial in study.trials)


def test_a_database_knows_the_trials_that_run_on_other_hosts(database: str) -> None:
    with worker_elsewhere(database, 3):
        storage = open_storage(database)
        study = optuna.load_study(study_name="fake", storage=storage)
        assert num_running_elsewhere(study, storage) == 1
        outcome = fake_run(storage=database, total=3)
        assert sorted(outcomes(outcome.study)) == ["complete", "complete", "running"]
        assert not outcome.finished


def test_a_database_gives_up_a_trial_that_fell_silent(database: str) -> None:
    storage = open_storage(database)
    assert isinstance(storage, optuna.storages.RDBStorage)
    study = left_behind_elsewhere(storage)
    assert num_running_elsewhere(study, storage) == 1
    storage.heartbeat_interval, storage.grace_period = 1, 1
    time.sleep(2.5)
    assert num_running_elsewhere(study, storage) == 0
    outcome = fake_run(FakeObjective(num_samples=FEW), storage, total=5)
    assert outcomes(outcome.study).count("abandoned") == 1
    assert story(outcome.study) == undisturbed(5)


def left_behind_elsewhere(storage: optuna.storages.RDBStorage) -> optuna.Study:
    with pytest.warns(UserWarning, match="Heartbeat"):
        study = left_behind(storage, "another-host:7:boot/7")
    storage.record_heartbeat(study.trials[-1]._trial_id)
    return study


@pytest.mark.parametrize(("days", "lives", "outcome"), [(0, 1, "running"), (3, 0, "abandoned")])
def test_a_trial_without_any_heartbeat_is_told_by_its_age(
    database: str,
    days: int,
    lives: int,
    outcome: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Later:
            now = datetime.now(tz)
            return cls.fromtimestamp(now.timestamp() + days * 86_400)

    storage = open_storage(database)
    with pytest.warns(UserWarning, match="Heartbeat"):
        study = left_behind(storage, "another-host:7:boot/7", total=1)
    monkeypatch.setattr("vflowopt_search.heartbeat.datetime", Later)
    assert num_running_elsewhere(study, storage) == lives
    recover(study, storage)
    assert trials.outcome_of(study.trials[1]) == outcome
    assert (study.trials[1].state is TrialState.RUNNING) == bool(lives)
