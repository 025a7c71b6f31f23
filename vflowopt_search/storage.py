"""Where a study lives: a journal file that survives crashes, or any Optuna database URL."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from optuna import Study
from optuna.exceptions import ExperimentalWarning
from optuna.storages import (
    BaseStorage,
    JournalStorage,
    RDBStorage,
)
from optuna.storages.journal import JournalFileBackend
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from vflowopt_search.errors import StudyError
from vflowopt_search.journal_lock import SignedFileLock

HEARTBEAT_SECONDS = 60
GRACE_SECONDS = 180
"""A trial of a database without a heartbeat for this long is taken from its worker."""


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Optuna prints a line for each trial; we report them ourselves."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def open_storage(storage: str | Path | BaseStorage) -> BaseStorage:
    """The storage at a journal file's path or a database URL (`sqlite:///study.db`).

    A journal's last line that a crash cut off is removed first, and so is the lock of a dead
    process.

    Raises:
        StudyError: the file or the database cannot be opened.
    """
    if isinstance(storage, BaseStorage):
        return storage
    if "://" in str(storage):
        return _database(str(storage))
    path = Path(storage).resolve()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _cut_torn_line(path)
        return read_journal(path)
    except OSError as error:
        raise StudyError(
            f"the study {path} cannot be opened ({error.strerror}); choose a folder that can be "
            f"written to"
        ) from error


def stored_study(storage: str | Path | BaseStorage, name: str) -> Study | None:
    """The study of this name; None where there is none, and then nothing is made.

    Raises:
        StudyError: the file or the database cannot be opened.
    """
    if not isinstance(storage, BaseStorage):
        file = sqlite_file(str(storage)) if "://" in str(storage) else Path(storage)
        if file is not None and not file.is_file():  # opening would make it
            return None
    opened = open_storage(storage)
    if name not in optuna.get_all_study_names(opened):
        return None
    return optuna.load_study(study_name=name, storage=opened)


def sqlite_file(url: str) -> Path | None:
    """The file that a URL of SQLite names; None of other databases."""
    try:
        parts = make_url(url)
    except ArgumentError:
        return None  # to be refused where it is opened
    named = parts.database or ":memory:"
    is_file = parts.get_backend_name() == "sqlite" and not named.startswith((":memory:", "file:"))
    return Path(named) if is_file else None


def read_journal(path: str | Path) -> JournalStorage:
    """The journal as it is: nothing is repaired, so a running study may be looked at.

    Raises:
        StudyError: there is a line in the file that is not an entry of a journal.
    """
    where = str(Path(path).resolve())
    try:
        return JournalStorage(JournalFileBackend(where, lock_obj=SignedFileLock(where)))
    except (ValueError, KeyError, TypeError) as error:
        raise StudyError(
            f"{path} is not a readable study journal ({error}); remove the broken line or choose "
            f"another output folder"
        ) from error


def _database(url: str) -> RDBStorage:
    try:
        try:
            return _opened(url)
        except SQLAlchemyError as error:
            if "already exists" not in str(error):
                raise
            return _opened(url)  # another worker made the tables at the same moment
    except (SQLAlchemyError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise StudyError(
            f"the {url.split('://')[0]} database cannot be opened ({reason}); check the URL, "
            f"that its folder exists, and that its driver is installed"
        ) from error


def _opened(url: str) -> RDBStorage:
    with warnings.catch_warnings():
        # Heartbeats are the only way to notice a worker on another host that died.
        warnings.simplefilter("ignore", ExperimentalWarning)
        return RDBStorage(url, heartbeat_interval=HEARTBEAT_SECONDS, grace_period=GRACE_SECONDS)


def _cut_torn_line(path: Path) -> None:
    """Remove what follows the last newline: a full disk or a kill cut an entry off."""
    if not path.exists() or _whole_bytes(path) == path.stat().st_size:
        return
    lock = SignedFileLock(str(path))
    lock.acquire()  # under it no living process is in the middle of an append
    try:
        os.truncate(path, _whole_bytes(path))
    finally:
        lock.release()


def _whole_bytes(path: Path) -> int:
    """Length of a file up to and with its last newline."""
    block = 1 << 16
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - block)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
    return 0
