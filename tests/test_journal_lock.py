"""The journal's lock: a living owner is waited for, a dead one holds nobody up."""

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

from tests.fake_study import fake_run
from tests.other_processes import ended_process, name_of, running_process, sleeper
from vflowopt_search import journal_lock
from vflowopt_search.journal_lock import SignedFileLock, remove_if_left_behind
from vflowopt_search.processes import is_gone, this_process

ROOT = Path(__file__).parents[1]
ACQUIRE = """import sys
from vflowopt_search.journal_lock import SignedFileLock
print("ready", flush=True)
SignedFileLock(sys.argv[1]).acquire()
"""


def test_a_dead_owners_lock_does_not_hold_up(tmp_path: Path) -> None:
    journal = tmp_path / "study.journal"
    (tmp_path / "study.journal.lock").write_text(ended_process())
    before = time.monotonic()
    assert fake_run(storage=journal, total=1).finished
    assert time.monotonic() - before < 5
    assert [file.name for file in tmp_path.iterdir()] == ["study.journal"]


def test_an_old_unsigned_lock_does_not_hold_up(tmp_path: Path) -> None:
    lock = tmp_path / "study.journal.lock"
    lock.touch()
    os.utime(lock, (time.time() - 60, time.time() - 60))
    before = time.monotonic()
    assert fake_run(storage=tmp_path / "study.journal", total=1).finished
    assert time.monotonic() - before < 5


def test_the_lock_of_a_host_of_the_same_name_is_left_until_it_is_old(tmp_path: Path) -> None:
    host, pid, start = this_process().rsplit(":", 2)
    lock = tmp_path / "study.journal.lock"
    lock.write_text(f"{host}:{pid}:another-boot/{start.split('/')[1]}")
    remove_if_left_behind(lock)
    assert lock.exists()
    os.utime(lock, (time.time() - 60, time.time() - 60))  # then it is this host before its start
    remove_if_left_behind(lock)
    assert not lock.exists()


@pytest.fixture
def alive() -> Iterator[str]:
    """The name of another process, which lives."""
    with running_process() as name:
        yield name


def test_a_living_owners_lock_is_respected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alive: str
) -> None:
    (tmp_path / "journal.lock").write_text(alive)
    monkeypatch.setattr(journal_lock, "FOREIGN_LOCK_SECONDS", 0.1)
    waiting = threading.Thread(target=SignedFileLock(str(tmp_path / "journal")).acquire)
    waiting.start()
    time.sleep(1)
    assert waiting.is_alive()
    assert (tmp_path / "journal.lock").read_text() == alive
    (tmp_path / "journal.lock").unlink()
    waiting.join(timeout=20)
    assert (tmp_path / "journal.lock").read_text() == this_process()


def test_a_lock_that_was_taken_over_is_not_released_by_its_first_owner(
    tmp_path: Path, alive: str
) -> None:
    lock = SignedFileLock(str(tmp_path / "journal"))
    lock.acquire()
    (tmp_path / "journal.lock").write_text(alive)
    lock.release()
    assert (tmp_path / "journal.lock").read_text() == alive
    (tmp_path / "journal.lock").unlink()
    lock.release()  # and the second one has released it
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_ctrl_c_left_in_this_process_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_lock, "FOREIGN_LOCK_SECONDS", 0.5)
    for _ in range(2):
        assert SignedFileLock(str(tmp_path / "journal")).acquire()


def test_a_lock_is_held_until_it_is_released(tmp_path: Path) -> None:
    lock = SignedFileLock(str(tmp_path / "journal"))
    lock.acquire()
    assert (tmp_path / "journal.lock").read_text() == this_process()
    command = [sys.executable, "-c", ACQUIRE, str(tmp_path / "journal")]
    waiting = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)
    assert waiting.stdout is not None and waiting.stdout.readline() == b"ready\n"
    time.sleep(0.3)
    assert waiting.poll() is None
    lock.release()
    waiting.communicate(timeout=20)
    assert waiting.returncode == 0
    assert is_gone((tmp_path / "journal.lock").read_text())


def test_two_that_see_a_dead_owner_do_not_both_get_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alive: str
) -> None:
    lock, dead = tmp_path / "study.journal.lock", ended_process()
    lock.write_text(dead)
    judged: list[str] = []

    def another_is_quicker(owner: str) -> bool:
        """Between our look at the dead owner's lock and what we do, another takes it over."""
        gone = is_gone(owner)
        if not judged:
            lock.unlink()
            lock.write_text(alive)
        judged.append(owner)
        return gone

    monkeypatch.setattr(journal_lock, "is_gone", another_is_quicker)
    remove_if_left_behind(lock)
    assert judged[0] == dead
    assert lock.read_text() == alive
    assert [file.name for file in tmp_path.iterdir()] == [lock.name]


def test_an_owner_that_dies_while_others_wait_holds_nobody_up(tmp_path: Path) -> None:
    lock, owner = tmp_path / "journal.lock", sleeper()
    lock.write_text(name_of(owner))
    waiting = subprocess.Popen([sys.executable, "-c", ACQUIRE, tmp_path / "journal"], cwd=ROOT)
    time.sleep(1)
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    before = time.monotonic()
    waiting.communicate(timeout=20)
    assert time.monotonic() - before < 10
    assert waiting.returncode == 0
    assert is_gone(lock.read_text())


def test_who_died_taking_a_lock_over_holds_nobody_up(tmp_path: Path) -> None:
    dead = ended_process()
    for name in ("journal.lock", "journal.lock.takeover"):
        (tmp_path / name).write_text(dead)
    before = time.monotonic()
    assert SignedFileLock(str(tmp_path / "journal")).acquire()
    assert time.monotonic() - before < 5
    assert [file.name for file in tmp_path.iterdir()] == ["journal.lock"]
    assert (tmp_path / "journal.lock").read_text() == this_process()


def test_a_lock_from_elsewhere_is_given_up_when_it_did_not_change_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "journal.lock").write_text("another-host:7:boot/7")
    monkeypatch.setattr(journal_lock, "FOREIGN_LOCK_SECONDS", 1.0)
    before = time.monotonic()
    assert SignedFileLock(str(tmp_path / "journal")).acquire()
    assert 1.0 < time.monotonic() - before < 5


def test_a_disk_that_is_full_leaves_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_full(*args: object, **kwargs: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", is_full)
    with pytest.raises(OSError, match="No space left"):
        SignedFileLock(str(tmp_path / "journal")).acquire()
    assert list(tmp_path.iterdir()) == []
