"""Signs of life that trials of a round give to a database."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from threading import Event

import optuna
import pytest
from optuna.storages import RDBStorage, fail_stale_trials
from sqlalchemy.exc import OperationalError

from vflowopt_search.heartbeat import Heartbeat
from vflowopt_search.storage import open_storage


def test_trials_of_a_round_give_signs_of_life_until_it_ends(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/study.db")
    assert isinstance(storage, RDBStorage)
    storage.heartbeat_interval, storage.grace_period = 1, 2
    study = optuna.create_study(storage=storage)
    with pytest.warns(UserWarning, match="Heartbeat"):
        asked = [study.ask() for _ in range(2)]
    with Heartbeat(storage) as heartbeat:
        for trial in asked:
            heartbeat.add(trial._trial_id)
        time.sleep(4.5)
        with pytest.warns(optuna.exceptions.ExperimentalWarning):
            fail_stale_trials(study)
        assert {trial.state.name for trial in study.trials} == {"RUNNING"}
    time.sleep(4.5)
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        fail_stale_trials(study)
    assert [trial.state.name for trial in study.trials[:2]] == ["FAIL", "FAIL"]


def test_a_journal_wants_no_signs_of_life(tmp_path: Path) -> None:
    storage = open_storage(tmp_path / "study.journal")
    threads = threading.active_count()
    with Heartbeat(storage) as heartbeat:
        heartbeat.add(7)  # there is no such trial, and nobody asks for it
        assert threading.active_count() == threads


@pytest.mark.parametrize(
    "error",
    [
        optuna.exceptions.StorageInternalError("busy"),
        OperationalError("update", {}, Exception("locked")),
    ],
)
def test_a_database_that_fails_once_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/study.db")
    assert isinstance(storage, RDBStorage)
    storage.heartbeat_interval = 1
    signs, again = [], Event()

    def fails_at_second(trial_id: int) -> None:
        signs.append(trial_id)
        if len(signs) == 2:
            raise error
        if len(signs) == 3:
            again.set()

    monkeypatch.setattr(storage, "record_heartbeat", fails_at_second)
    with Heartbeat(storage) as heartbeat:
        heartbeat.add(7)
        assert again.wait(10)
