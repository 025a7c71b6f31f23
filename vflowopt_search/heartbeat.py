"""Signs of life for a database, by which workers on other hosts tell a dead trial from a slow one.

Optuna gives them under `study.optimize` only, to one trial at a time; rounds are asked and told.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timedelta
from threading import Event, Thread
from types import TracebackType

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._rdb.models import TrialHeartbeatModel
from optuna.trial import FrozenTrial
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from vflowopt_search.signs import UNSIGNED


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


def beats(storage: BaseStorage, trial: FrozenTrial) -> bool:
    """Whether a running trial of a database gave a sign of life lately, or has hardly begun."""
    age = _age(storage, trial)
    if age is None:
        return _wants_signs(storage) and abs(_since_start(trial)) <= _grace(storage)
    return age <= _grace(storage)


def is_stale(storage: BaseStorage, trial: FrozenTrial) -> bool:
    """Whether a running trial of a database is dead by its silence."""
    age = _age(storage, trial)
    if age is None:  # its worker died before the first sign
        return _wants_signs(storage) and _since_start(trial) > UNSIGNED
    return age > _grace(storage)


def _age(storage: BaseStorage, trial: FrozenTrial) -> timedelta | None:
    """Since the last sign of life of a trial, by the database's clock; None where it gave none."""
    if not isinstance(storage, RDBStorage):
        return None
    sign = select(TrialHeartbeatModel.heartbeat).filter_by(trial_id=trial._trial_id)
    with Session(storage.engine) as session:
        last, now = session.scalar(sign), session.scalar(select(func.now()))
    # some databases tell the zone of one of them only
    return None if last is None or now is None else now.replace(tzinfo=None) - last


def _wants_signs(storage: BaseStorage) -> bool:
    return isinstance(storage, RDBStorage) and storage.get_heartbeat_interval() is not None


def _grace(storage: BaseStorage) -> timedelta:
    assert isinstance(storage, RDBStorage)  # others have no signs
    return timedelta(seconds=storage.grace_period or 2 * (storage.heartbeat_interval or 0))


def _since_start(trial: FrozenTrial) -> timedelta:
    assert trial.datetime_start is not None  # it runs
    return datetime.now() - trial.datetime_start
