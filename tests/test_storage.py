"""Crashes: torn lines, locks and trials of killed processes, real `kill -9`s, databases."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.storages import InMemoryStorage, RDBStorage
from sqlalchemy.exc import OperationalError

from tests.fake_study import FakeObjective, fake_run, story
from tests.other_processes import ended_process, running_process, wait_until
from vflowopt_search import trials
from vflowopt_search.errors import StudyError
from vflowopt_search.processes import is_alive, is_gone, this_process
from vflowopt_search.recovery import MAX_DEATHS, num_running_elsewhere, recover
from vflowopt_search.storage import open_storage, read_journal, stored_study

ROOT = Path(__file__).parents[1]


def start_study(journal: Path, total: int, delay: float) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.fake_study", str(journal), str(total), str(delay)]
    return subprocess.Popen(command, cwd=ROOT)


def wait_for(journal: Path, lines: int, process: subprocess.Popen[bytes]) -> None:
    def written() -> bool:
        return journal.exists() and journal.read_bytes().count(b"\n") >= lines

    wait_until(written, process)


def test_kill_9_costs_nothing_but_the_running_trial(tmp_path: Path) -> None:
    journal = tmp_path / "study.journal"
    for lines in (20, 130):
        process = start_study(journal, 12, 0.05)
        wait_for(journal, lines, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    counted = trials.num_counted(only_study(journal).trials)
    assert 1 <= counted < 12
    objective = FakeObjective()
    outcome = fake_run(objective, journal, total=12)
    assert outcome.finished and trials.num_counted(outcome.study.trials) == 12
    assert [trials.outcome_of(t) for t in outcome.study.trials].count("abandoned") >= 1
    assert story(outcome.study) == story(fake_run(total=12).study)
    assert objective.measured <= (12 - counted) * 24


def only_study(journal: Path) -> optuna.Study:
    return optuna.load_study(study_name="fake", storage=read_journal(journal))


@pytest.mark.parametrize("torn", [b'{"op_code": 5, "wor', b"\0" * 70_000, b"x" * 200_000])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    journal = tmp_path / "study.journal"
    fake_run(storage=journal, total=3)
    whole = journal.read_bytes()
    journal.write_bytes(whole + torn)
    assert len(only_study(journal).trials) == 3  # looking changes nothing
    assert journal.read_bytes() == whole + torn
    outcome = fake_run(storage=journal, total=6)
    assert journal.read_bytes().startswith(whole)
    assert story(outcome.study) == story(fake_run(total=6).study)


def test_a_journal_without_a_whole_line_starts_anew(tmp_path: Path) -> None:
    journal = tmp_path / "new" / "study.journal"
    journal.parent.mkdir()
    journal.write_bytes(b'{"op_co')
    assert fake_run(storage=journal, total=1).finished


def test_a_broken_line_inside_is_refused(tmp_path: Path) -> None:
    journal = tmp_path / "study.journal"
    fake_run(storage=journal, total=1)
    journal.write_bytes(b"not json\n" + journal.read_bytes())
    with pytest.raises(StudyError, match=r"study\.journal is not a readable study journal"):
        open_storage(journal)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StudyError, match=r"cannot be opened .* choose a folder"):
        open_storage(tmp_path / "file" / "study.journal")


def left_running(storage: InMemoryStorage, owner: str | None) -> optuna.Study:
    """A study of three trials and a fourth that its process left behind."""
    study = fake_run(storage=storage, total=3).study
    if owner is None:
        storage.create_new_trial(study._study_id)
    else:
        measured_by(owner, study.ask())
    return study


def measured_by(owner: str, trial: optuna.Trial) -> None:
    trial.set_user_attr(trials.OWNER, owner)
    trial.set_user_attr(trials.BEGUN, True)


def test_a_dead_processs_trial_is_tried_again_a_living_ones_not() -> None:
    storage = InMemoryStorage()
    study = left_running(storage, ended_process())
    with running_process() as alive:
        for owner in (alive, "another-host:7:boot/7", this_process()):
            study.ask().set_user_attr(trials.OWNER, owner)
        recover(study, storage)
        recover(study, storage)  # as if it had been killed in between
    outcomes = [trials.outcome_of(trial) for trial in study.trials[3:]]
    assert outcomes == ["abandoned", "running", "running", "abandoned", "waiting", "waiting"]
    assert [trial.user_attrs[trials.RETRY_OF] for trial in study.trials[7:]] == [3, 6]


def test_a_trial_without_an_owner_is_tried_again_after_a_moment() -> None:
    storage = InMemoryStorage()
    study = left_running(storage, None)
    before = time.monotonic()
    recover(study, storage)
    assert time.monotonic() - before >= 2
    assert [trials.outcome_of(trial) for trial in study.trials[3:]] == ["abandoned", "waiting"]


def test_a_trial_that_kills_its_process_again_and_again_fails() -> None:
    storage, dead = InMemoryStorage(), ended_process()
    study = left_running(storage, dead)
    for _ in range(MAX_DEATHS - 1):
        recover(study, storage)
        measured_by(dead, study.ask())
    recover(study, storage)
    assert [trials.outcome_of(trial) for trial in study.trials[3:]] == [
        *["abandoned"] * (MAX_DEATHS - 1),
        "failed",
    ]
    assert "3 processes died" in study.trials[-1].user_attrs[trials.FAILURE]
    outcome = fake_run(storage=storage, total=6)
    assert outcome.finished and len(outcome.study.trials) == 3 + MAX_DEATHS + 2


def test_trials_of_other_living_processes_are_counted_as_begun(tmp_path: Path) -> None:
    journal = tmp_path / "study.journal"
    process = start_study(journal, 4, 1.0)
    try:
        wait_for(journal, 8, process)
        study, storage = only_study(journal), read_journal(journal)
        assert num_running_elsewhere(study, storage) == 1
        recover(study, storage)
        assert num_running_elsewhere(study, storage) == 1
    finally:
        process.kill()
        process.wait()
    assert num_running_elsewhere(study, storage) == 0


def test_a_process_is_not_mistaken_for_a_later_one_of_its_number() -> None:
    host, pid, start = this_process().rsplit(":", 2)
    boot, ticks = start.split("/")
    assert is_alive(this_process()) and not is_gone(this_process())
    assert is_gone(f"{host}:{pid}:{boot}/{int(ticks) - 1}")
    assert is_gone(f"{host}:{pid}:another-boot/{ticks}")
    for unknown in ("", "nonsense", f"other-{host}:{pid}:{start}"):
        assert not is_gone(unknown) and not is_alive(unknown)


def test_two_runs_on_a_database_are_one_study(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    few = FakeObjective(num_samples=9)  # a database takes long for each
    fake_run(few, url, total=3)
    outcome = fake_run(few, url, total=6)
    assert story(outcome.study) == story(fake_run(few, total=6).study)


def test_a_databases_stale_trial_keeps_its_slot(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/study.db")
    assert isinstance(storage, RDBStorage) and storage.get_heartbeat_interval() is not None
    few = FakeObjective(num_samples=9)
    study = fake_run(few, storage, total=4).study
    with pytest.warns(UserWarning, match="Heartbeat"):
        trial = study.ask()
    trial.set_user_attr(trials.OWNER, "another-host:7:boot/7")
    trial.set_user_attr(trials.SLOT, 4)
    storage.record_heartbeat(trial._trial_id)
    storage.heartbeat_interval, storage.grace_period = 1, 1
    time.sleep(2.5)
    outcome = fake_run(few, storage, total=6)
    assert [trials.outcome_of(t) for t in outcome.study.trials].count("abandoned") == 1
    assert story(outcome.study) == story(fake_run(few, total=6).study)


@pytest.mark.parametrize(
    "url", ["sqlite:////no/such/folder/study.db", "nonsense://study", "oracle+cx_oracle://x/y"]
)
def test_a_database_that_cannot_be_opened_is_refused(url: str) -> None:
    with pytest.raises(StudyError, match=r"database cannot be opened \(.*\); check the URL"):
        open_storage(url)


def test_a_database_whose_tables_another_worker_just_made_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, tries = f"sqlite:///{tmp_path}/study.db", []
    make = sqlalchemy.MetaData.create_all

    def too_late(self: sqlalchemy.MetaData, bind: Any, *args: Any, **kwargs: Any) -> None:
        tries.append(url)
        if len(tries) == 1:
            raise OperationalError("create", {}, Exception("table studies already exists"))
        make(self, bind, *args, **kwargs)

    monkeypatch.setattr(sqlalchemy.MetaData, "create_all", too_late)
    assert isinstance(open_storage(url), RDBStorage)
    assert len(tries) == 2


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_a_look_at_a_study_makes_none(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "new" / "study"
    (tmp_path / "new").mkdir()
    where = f"sqlite:///{file}" if kind == "sqlite" else file
    assert stored_study(where, "fake") is None
    assert list((tmp_path / "new").iterdir()) == []
    fake_run(storage=where, total=1)
    assert stored_study(where, "another") is None
    found = stored_study(where, "fake")
    assert found is not None and len(found.trials) == 1
