"""Signs of life beside a journal, which tell a dead worker of another host from a slow one.

A process of this host is looked up by its number. One that runs elsewhere, or ran in a container
that is gone, cannot be: of it nothing is known but when it last touched its file here. All ages
are told by one clock, that of the file system.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import AbstractContextManager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from uuid import uuid4

from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend

from vflowopt_search.errors import StudyError
from vflowopt_search.processes import this_process

BEAT_SECONDS = 20.0
SILENCE_SECONDS = 300.0
"""Who was silent for this long is dead; file servers may tell of a sign a minute late."""
UNSIGNED = timedelta(days=2)
"""A trial this old whose worker left no file at all, as older versions did, is dead too."""


class SignsOfLife(AbstractContextManager[None]):
    """Inside the `with` block, this process touches its file beside the study's journal.

    A storage that is no journal file is left alone: a database has signs of its own.
    """

    def __init__(self, storage: BaseStorage) -> None:
        journal = _journal_of(storage)
        self._file = None if journal is None else _file_of(journal, this_process())
        self._end = Event()
        self._thread = Thread(target=self._beat, daemon=True)

    def __enter__(self) -> None:
        if self._file is None:
            return
        try:
            self._file.write_text(this_process(), encoding="utf-8")
        except OSError as error:
            raise StudyError(
                f"{self._file} cannot be written ({error.strerror}); choose a folder that can be "
                f"written to"
            ) from error
        self._thread.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end.set()
        if self._file is not None:
            self._thread.join()
            with suppress(OSError):
                self._file.unlink(missing_ok=True)

    def _beat(self) -> None:
        assert self._file is not None  # else it is not started
        while not self._end.wait(BEAT_SECONDS):
            # a file server that is away for a moment is asked again at the next beat
            with suppress(OSError):
                self._file.touch()


def seconds_silent(storage: BaseStorage, owner: str) -> float | None:
    """How long ago a process last gave a sign; None where it left none, or cannot have."""
    journal = _journal_of(storage)
    if journal is None:
        return None
    try:
        last = _time_of(_file_of(journal, owner))
        clock = journal.with_name(f"{journal.name}.clock-{uuid4()}")
        clock.touch()
        try:
            return _time_of(clock) - last
        finally:
            clock.unlink(missing_ok=True)
    except OSError:
        return None


def gives_signs(storage: BaseStorage, owner: str) -> bool:
    """Whether a process, wherever it is, gave a sign of life lately."""
    silent = seconds_silent(storage, owner)
    return silent is not None and silent <= SILENCE_SECONDS


def is_silent(storage: BaseStorage, owner: str, started: datetime | None) -> bool:
    """Whether the owner of a running trial is dead by its silence.

    Args:
        storage: the study's.
        owner: the process.
        started: when the trial began, by a clock that may be some hours off.
    """
    if _journal_of(storage) is None:
        return False
    silent = seconds_silent(storage, owner)
    if silent is not None:
        return silent > SILENCE_SECONDS
    return started is not None and datetime.now() - started > UNSIGNED


def forget(storage: BaseStorage, owner: str) -> None:
    """Remove what a dead process left."""
    journal = _journal_of(storage)
    if journal is not None:
        with suppress(OSError):
            _file_of(journal, owner).unlink(missing_ok=True)


def _journal_of(storage: BaseStorage) -> Path | None:
    backend = storage._backend if isinstance(storage, JournalStorage) else None
    return Path(backend._file_path) if isinstance(backend, JournalFileBackend) else None


def _file_of(journal: Path, owner: str) -> Path:
    digest = hashlib.sha256(owner.encode()).hexdigest()[:16]
    return journal.with_name(f"{journal.name}.alive-{digest}")


def _time_of(file: Path) -> float:
    """When it was touched; opened first, for only then a file server tells what is new."""
    with file.open("rb") as opened:
        return os.fstat(opened.fileno()).st_mtime
