"""Trials whose process stopped under them are closed, and their parameters tried again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any

from optuna import Study, Trial
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from vflowopt_search.heartbeat import beats, is_stale
from vflowopt_search.processes import is_alive, is_gone, is_of_another_boot, this_process
from vflowopt_search.signs import forget, gives_signs, is_silent
from vflowopt_search.trials import (
    ABANDONED,
    BEGUN,
    DEATHS,
    FAILURE,
    NEEDLESS,
    OWNER,
    RETRY_OF,
    SLOT,
    STRATEGY,
    TEXTBOOK,
    counts,
    outcome_of,
    slot_of,
)

SIGNING_SECONDS = 2.0
"""A worker names itself in a trial that it made within this time."""
UNSIGNED_TRIAL = timedelta(minutes=1)
"""A trial without a name for so long is looked at while others run: clocks may differ a little."""
MAX_DEATHS = 3
"""Parameters under which so many processes died are not tried again."""


def recover(study: Study, storage: BaseStorage) -> None:
    """Close the running trials of dead processes and of this one, and enqueue them again.

    Call it when no trial of this process runs. It may be killed anywhere and called again, and
    several processes may call it at once: what is enqueued twice runs once (see `why_needless`).
    """
    dead = set()
    for trial in _running(study):
        if _is_left_behind(study, storage, trial):
            _close(study, storage, trial)
            dead.add(trial.user_attrs.get(OWNER, this_process()))
    for owner in dead - {this_process()}:  # not before: another of its trials is told by its sign
        forget(storage, owner)
    trials = study.get_trials(deepcopy=False)
    retried = {trial.user_attrs.get(RETRY_OF) for trial in trials if not _is_needless(trial)}
    for trial in trials:
        # Optuna's heartbeat enqueues a trial again by itself, and says so here.
        retried.update(trial.system_attrs.get("retry_history", ()))
    for trial in trials:
        left = outcome_of(trial) == "abandoned" and trial.number not in retried
        if left and not _is_needless(trial) and not _is_repeated(trial, trials):
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


def recover_others(study: Study, storage: BaseStorage) -> None:
    """The same when another trial's worker ended or fell silent meanwhile; else nothing."""
    for trial in _running(study):
        owner = trial.user_attrs.get(OWNER, "")
        ended = _has_ended(storage, trial) if owner else _is_old(trial)
        if ended and not is_alive(owner):
            recover(study, storage)
            return


def num_running_elsewhere(study: Study, storage: BaseStorage) -> int:
    """How many trials other living processes, of this host or of others, have in hand."""
    others = [t for t in _running(study) if t.user_attrs.get(OWNER) != this_process()]
    return sum(_is_in_hand(storage, trial) for trial in others)


def why_needless(study: Study, storage: BaseStorage, trial: Trial, total: int) -> str:
    """Why a trial that this process has just asked for is not to be measured; empty: it is.

    Workers look and ask at the same moment, and then there are more trials than were wanted. They
    agree by the trials' numbers: what an earlier one does is not done again.

    Args:
        study: of several workers.
        storage: the study's.
        trial: was just asked for.
        total: trials that the study has in the end.
    """
    everything = study.get_trials(deepcopy=False)
    if _is_repeated(everything[trial.number], everything):
        return "an earlier trial tries the same parameters again"
    earlier = [_signed(study, one) for one in everything[: trial.number]]
    begun = sum(
        counts(one) or _is_in_hand(storage, one) or _is_to_be_retried(one, everything)
        for one in earlier
    )
    return "" if begun < total else "other workers began the last trials"


def close_needless(study: Study, trial: Trial, reason: str) -> None:
    """End a trial that is not to be measured; it does not count, and no other replaces it."""
    trial.set_user_attr(NEEDLESS, True)
    trial.set_user_attr(ABANDONED, reason)
    study.tell(trial, state=TrialState.FAIL)


def _is_repeated(trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> bool:
    """Whether an earlier trial replaces the same one: two processes recovered it at once."""
    replaced = trial.user_attrs.get(RETRY_OF)
    earlier = (one for one in trials[: trial.number] if not _is_needless(one))
    return replaced is not None and replaced in (one.user_attrs.get(RETRY_OF) for one in earlier)


def _is_needless(trial: FrozenTrial) -> bool:
    return NEEDLESS in trial.user_attrs


def _is_in_hand(storage: BaseStorage, trial: FrozenTrial) -> bool:
    """Whether a living worker named itself in a trial that runs."""
    return _runs(trial) and OWNER in trial.user_attrs and _lives(storage, trial)


def _is_to_be_retried(trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> bool:
    """Whether a trial waits to be tried again, which whoever asks next will do."""
    waits = trial.state is TrialState.WAITING and RETRY_OF in trial.user_attrs
    return waits and not _is_repeated(trial, trials)


def _lives(storage: BaseStorage, trial: FrozenTrial) -> bool:
    owner = trial.user_attrs.get(OWNER, "")
    return is_alive(owner) or (not _is_dead(storage, trial) and _gives_signs(storage, trial))


def _has_ended(storage: BaseStorage, trial: FrozenTrial) -> bool:
    """Whether the owner of a running trial is dead, by its number or by its silence."""
    owner = trial.user_attrs.get(OWNER, "")
    silent = is_silent(storage, owner, trial.datetime_start) or is_stale(storage, trial)
    return silent or _is_dead(storage, trial)


def _gives_signs(storage: BaseStorage, trial: FrozenTrial) -> bool:
    return gives_signs(storage, trial.user_attrs.get(OWNER, "")) or beats(storage, trial)


def _is_dead(storage: BaseStorage, trial: FrozenTrial) -> bool:
    """Whether the process of a running trial has certainly ended, by its number."""
    owner = trial.user_attrs.get(OWNER, "")
    # another host of the same name looks like this one before its last start
    return is_gone(owner) and not (is_of_another_boot(owner) and _gives_signs(storage, trial))


def _is_old(trial: FrozenTrial) -> bool:
    """Whether a trial that nobody signed began so long ago that it is worth a closer look."""
    began = trial.datetime_start
    return began is not None and datetime.now() - began > UNSIGNED_TRIAL


def _runs(trial: FrozenTrial) -> bool:
    return trial.state is TrialState.RUNNING


def _signed(study: Study, trial: FrozenTrial) -> FrozenTrial:
    """A trial as it is once its worker has named itself, if it runs; one without has none."""
    deadline = time.monotonic() + SIGNING_SECONDS
    while _runs(trial) and OWNER not in trial.user_attrs and time.monotonic() < deadline:
        time.sleep(0.05)
        trial = study.get_trials(deepcopy=False)[trial.number]
    return trial


def _running(study: Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def _is_left_behind(study: Study, storage: BaseStorage, trial: FrozenTrial) -> bool:
    trial = _signed(study, trial)
    if not _runs(trial):
        return False
    owner = trial.user_attrs.get(OWNER)
    if owner is None or owner == this_process():
        return True
    return not is_alive(owner) and _has_ended(storage, trial)


def _close(study: Study, storage: BaseStorage, trial: FrozenTrial) -> None:
    with suppress(UpdateFinishedTrialError):  # another worker found it too, and was quicker
        _write_closing(study, storage, trial)


def _write_closing(study: Study, storage: BaseStorage, trial: FrozenTrial) -> None:
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
