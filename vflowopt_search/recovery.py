"""Trials whose process stopped under them are closed, and their parameters tried again."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from optuna import Study
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from vflowopt_search.processes import is_alive, is_gone, is_of_another_boot, this_process
from vflowopt_search.signs import forget, gives_signs, is_silent
from vflowopt_search.trials import (
    ABANDONED,
    BEGUN,
    DEATHS,
    FAILURE,
    OWNER,
    RETRY_OF,
    SLOT,
    STRATEGY,
    TEXTBOOK,
    outcome_of,
    slot_of,
)

SIGNING_SECONDS = 2.0
"""A worker names itself in a trial that it made within this time."""
MAX_DEATHS = 3
"""Parameters under which so many processes died are not tried again."""


def recover(study: Study, storage: BaseStorage) -> None:
    """Close the running trials of dead processes and of this one, and enqueue them again.

    Call it when no trial of this process runs. It may be killed anywhere and called again.
    """
    dead = set()
    for trial in _running(study):
        if _is_left_behind(study, storage, trial):
            _close(study, storage, trial)
            dead.add(trial.user_attrs.get(OWNER, this_process()))
    for owner in dead - {this_process()}:  # not before: another of its trials is told by its sign
        forget(storage, owner)
    trials = study.get_trials(deepcopy=False)
    retried = {trial.user_attrs.get(RETRY_OF) for trial in trials}
    for trial in trials:
        # Optuna's heartbeat enqueues a trial again by itself, and says so here.
        retried.update(trial.system_attrs.get("retry_history", ()))
    for trial in trials:
        if outcome_of(trial) == "abandoned" and trial.number not in retried:
            _enqueue_again(study, trial)


class Recovering(AbstractContextManager[None]):
    """Leaves no trial of this process running when an error or Ctrl-C ends the `with` block."""

    def __init__(self, study: Study, storage: BaseStorage) -> None:
        self._study, self._storage = study, storage

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            recover(self._study, self._storage)


def recover_silent(study: Study, storage: BaseStorage) -> None:
    """The same when a trial's worker fell silent while this process ran trials; else nothing."""
    for trial in _running(study):
        owner = trial.user_attrs.get(OWNER, "")
        if owner and not is_alive(owner) and is_silent(storage, owner, trial.datetime_start):
            recover(study, storage)
            return


def num_running_elsewhere(study: Study, storage: BaseStorage) -> int:
    """How many trials other living processes, of this host or of others, have in hand."""
    owners = [trial.user_attrs.get(OWNER, "") for trial in _running(study)]
    return sum(owner != this_process() and _lives(storage, owner) for owner in owners)


def _lives(storage: BaseStorage, owner: str) -> bool:
    return is_alive(owner) or (not _is_dead(storage, owner) and gives_signs(storage, owner))


def _is_dead(storage: BaseStorage, owner: str) -> bool:
    """Whether a process has certainly ended, by its number."""
    # another host of the same name looks like this one before its last start
    return is_gone(owner) and not (is_of_another_boot(owner) and gives_signs(storage, owner))


def _running(study: Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def _is_left_behind(study: Study, storage: BaseStorage, trial: FrozenTrial) -> bool:
    deadline = time.monotonic() + SIGNING_SECONDS
    while not (owner := trial.user_attrs.get(OWNER)) and time.monotonic() < deadline:
        time.sleep(0.05)
        trial = study.get_trials(deepcopy=False)[trial.number]
    if trial.state is not TrialState.RUNNING:
        return False
    if owner is None or owner == this_process():
        return True
    if is_alive(owner):
        return False
    return _is_dead(storage, owner) or is_silent(storage, owner, trial.datetime_start)


def _close(study: Study, storage: BaseStorage, trial: FrozenTrial) -> None:
    died = trial.user_attrs.get(OWNER) != this_process()
    deaths = trial.user_attrs.get(DEATHS, 0) + (died and BEGUN in trial.user_attrs)
    storage.set_trial_user_attr(trial._trial_id, DEATHS, deaths)
    if deaths >= MAX_DEATHS:
        reason = f"{deaths} processes died while they measured this strategy"
        storage.set_trial_user_attr(trial._trial_id, FAILURE, reason)
    else:
        reason = "its process died" if died else "interrupted"
        reason = trial.user_attrs.get(ABANDONED, reason)
        storage.set_trial_user_attr(trial._trial_id, ABANDONED, reason)
    study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


def _enqueue_again(study: Study, trial: FrozenTrial) -> None:
    kept = {key: trial.user_attrs[key] for key in (TEXTBOOK, DEATHS) if key in trial.user_attrs}
    kept[SLOT] = slot_of(study, trial)
    # With half of the parameters the other half would be drawn from another place of the
    # random stream; with none, the slot's seed draws the same ones again.
    again: dict[str, Any] = {"fixed_params": trial.system_attrs.get("fixed_params", {})}
    if STRATEGY in trial.user_attrs:
        # what the sampler noted is what later trials of its round were drawn by
        again = {**trial.system_attrs, "fixed_params": dict(trial.params)}
    study.add_trial(  # as `enqueue_trial` does, which takes no notes
        create_trial(
            state=TrialState.WAITING,
            system_attrs=again,
            user_attrs={**kept, RETRY_OF: trial.number},
        )
    )
