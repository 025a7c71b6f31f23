"""Workers on other hosts: the dead are told by their silence, and nothing is taken from the living.

The other host is a process of this one that goes by another name.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import optuna
import pytest
from optuna.storages import InMemoryStorage

from tests.fake_study import fake_run, story
from vflowopt_search import signs, trials
from vflowopt_search.errors import StudyError
from vflowopt_search.processes import this_process
from vflowopt_search.recovery import num_running_elsewhere, recover, recover_others
from vflowopt_search.signs import SILENCE_SECONDS, SignsOfLife, gives_signs, is_silent
from vflowopt_search.storage import open_storage, read_journal

ROOT = Path(__file__).parents[1]
ELSEWHERE = (
    "import platform, runpy, sys; platform.node = lambda: 'another-host'; "
    "sys.argv = ['fake_study', *sys.argv[1:]]; "
    "runpy.run_module('tests.fake_study', run_name='__main__')"
)


@contextmanager
def worker_elsewhere(
    journal: Path, *, together: int = 1, delay: float = 0.4, done: int = 1
) -> Iterator[subprocess.Popen[bytes]]:
    """A worker of eight trials that measures some after so many are done; killed at the end."""
    command = [sys.executable, "-c", ELSEWHERE, str(journal), "8", str(delay), str(together)]
    with subprocess.Popen(command, cwd=ROOT) as worker:
        try:
            deadline = time.monotonic() + 60
            while not is_in_the_middle(journal, together, done):
                assert worker.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)
            yield worker
        finally:
            worker.send_signal(signal.SIGKILL)


def is_in_the_middle(journal: Path, together: int, done: int) -> bool:
    """Whether so many trials are being measured and so many are done, at one moment."""
    everything = study_of(journal).trials if outcomes(journal) else []
    running = [one for one in everything if trials.outcome_of(one) == "running"]
    begun = sum(trials.BEGUN in trial.user_attrs for trial in running)
    return begun >= together and trials.num_counted(everything) >= done


def study_of(journal: Path) -> optuna.Study:
    return optuna.load_study(study_name="fake", storage=read_journal(journal))


def outcomes(journal: Path) -> list[str]:
    try:
        if not journal.exists():
            return []
        return [trials.outcome_of(trial) for trial in study_of(journal).trials]
    except KeyError:  # its study is not there yet
        return []


def sign(journal: Path) -> Path:
    [file] = journal.parent.glob("*.alive-*")
    return file


@pytest.mark.parametrize("together", [1, 2])
def test_a_worker_killed_elsewhere_is_given_up_once_it_was_silent(
    tmp_path: Path, together: int
) -> None:
    journal = tmp_path / "study.journal"
    with worker_elsewhere(journal, together=together, delay=0.4 * together) as worker:
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    study, storage = study_of(journal), read_journal(journal)
    running = outcomes(journal).count("running")
    assert running >= together
    recover(study, storage)  # it may only be slow
    assert outcomes(journal).count("running") == running
    long_ago = time.time() - SILENCE_SECONDS - 1
    os.utime(sign(journal), (long_ago, long_ago))
    assert num_running_elsewhere(study, storage) == 0
    outcome = fake_run(storage=journal, total=8, trials_per_batch=together)
    assert outcome.finished
    assert "running" not in outcomes(journal)
    assert outcomes(journal).count("abandoned") == running
    assert story(outcome.study) == story(fake_run(total=8, trials_per_batch=together).study)
    assert [file.name for file in tmp_path.iterdir()] == ["study.journal"]


def test_nothing_is_taken_from_a_worker_that_lives_elsewhere(tmp_path: Path) -> None:
    journal = tmp_path / "study.journal"
    with worker_elsewhere(journal, delay=60, done=0):
        study, storage = study_of(journal), read_journal(journal)
        recover(study, storage)
        recover_others(study, storage)
        assert "abandoned" not in outcomes(journal)
        assert num_running_elsewhere(study, storage) == 1


def test_a_run_takes_over_what_falls_silent_while_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = tmp_path / "study.journal"
    with worker_elsewhere(journal) as worker:
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    monkeypatch.setattr(signs, "SILENCE_SECONDS", time.time() - sign(journal).stat().st_mtime + 1)
    outcome = fake_run(
        storage=journal, total=8, on_trial=lambda report: time.sleep(0.4 * (report.done < 7))
    )
    assert outcome.finished
    assert "running" not in outcomes(journal)
    assert story(outcome.study) == story(fake_run(total=8).study)


def test_signs_are_given_until_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signs, "BEAT_SECONDS", 0.05)
    storage = open_storage(tmp_path / "study.journal")
    with SignsOfLife(storage):
        [file] = tmp_path.glob("*.alive-*")
        for lost in (False, True):
            file.unlink() if lost else os.utime(file, (0, 0))
            deadline = time.monotonic() + 20
            while not gives_signs(storage, this_process()):
                assert time.monotonic() < deadline
                time.sleep(0.01)
    assert not list(tmp_path.glob("*.alive-*"))
    assert not gives_signs(storage, this_process())


def test_without_any_sign_only_age_tells(tmp_path: Path) -> None:
    storage = open_storage(tmp_path / "study.journal")
    now = datetime.now()
    assert not is_silent(storage, "another-host:7:boot/7", now - timedelta(hours=40))
    assert is_silent(storage, "another-host:7:boot/7", now - timedelta(hours=49))
    assert not is_silent(storage, "another-host:7:boot/7", None)
    assert not is_silent(InMemoryStorage(), "another-host:7:boot/7", now - timedelta(days=9))


def test_a_living_host_of_the_same_name_is_not_taken_for_this_one(tmp_path: Path) -> None:
    host, pid, start = this_process().rsplit(":", 2)
    twin = f"{host}:{pid}:another-boot/{start.split('/')[1]}"
    journal = tmp_path / "study.journal"
    study = fake_run(storage=journal, total=2).study
    storage = open_storage(journal)
    study.ask().set_user_attr(trials.OWNER, twin)
    signs._file_of(journal, twin).touch()
    recover(study, storage)
    assert outcomes(journal)[2:] == ["running"]
    signs._file_of(journal, twin).unlink()  # then it is this host before its last start
    recover(study, storage)
    assert outcomes(journal)[2:] == ["abandoned", "waiting"]


def test_a_folder_that_takes_no_sign_is_refused(tmp_path: Path) -> None:
    storage = open_storage(tmp_path / "run" / "study.journal")
    (tmp_path / "run").rename(tmp_path / "moved")
    with pytest.raises(StudyError, match=r"cannot be written .*; choose a folder"):
        SignsOfLife(storage).__enter__()
