"""Signs of life for a database, by which workers on other hosts tell a dead trial from a slow one.

Optuna gives them under `study.optimize` only, to one trial at a time; rounds are asked and told.
"""

from __future__ import annotations

import warnings
from contextlib import suppress
from threading import Event, Thread
from types import TracebackType

from optuna import Study
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, RDBStorage, fail_stale_trials
from sqlalchemy.exc import SQLAlchemyError


class Heartbeat:
    """Inside the `with` block, the trials that were added give a sign of life at every interval.

    A storage that wants none (a journal, or memory) is left alone.
    """

    def __init__(self, storage: BaseStorage) -> None:
        self._storage = storage if isinstance(storage, RDBStorage) else None
        self._interval = None if self._storage is None else self._storage.get_heartbeat_interval()
        self._trials: list[int] = []
        self._end = Event()
        self._thread = Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Heartbeat:
        if self._interval is not None:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def add(self, trial_id: int) -> None:
        """Give the first sign of a trial's life at once: without any it never counts as dead."""
        if self._interval is not None:
            self._record(trial_id)
            self._trials.append(trial_id)

    def _beat(self) -> None:
        while not self._end.wait(self._interval):
            # a database that is busy or away for a moment is asked again at the next interval
            with suppress(StorageInternalError, SQLAlchemyError):
                for trial_id in tuple(self._trials):
                    self._record(trial_id)

    def _record(self, trial_id: int) -> None:
        assert self._storage is not None  # else there is no interval
        self._storage.record_heartbeat(trial_id)


def fail_dead_trials(study: Study) -> None:
    """Close the trials of a database that gave no sign of life for too long."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        fail_stale_trials(study)
