"""What a trial of ours stores beside Optuna's own fields, and how it is read back.

A trial *counts* towards the asked total when it was measured (wholly, or until racing stopped
it) or failed for a reason of its own. It was *abandoned* when its process stopped under it; then
it does not count and another trial takes its slot.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from itertools import count
from math import isfinite
from typing import Literal

from optuna import Study, load_study
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

SLOT = "slot"
"""Place in the study, from 0; a trial that replaces an abandoned one has the same slot."""
OWNER = "owner"
"""The process that runs or ran it."""
TEXTBOOK = "textbook"
"""Name of the textbook strategy that it measures."""
STRATEGY = "strategy"
"""The strategy file's text."""
PER_SAMPLE = "per_sample"
"""Divergence of each calibration sample by its number; null where it was not measured."""
WHOLE = "whole"
"""Of a trial that is known from a table of trials alone: whether all samples were measured."""
SAMPLES_SEEN = "samples_seen"
SECONDS = "seconds"
"""Wall-clock time of the measurement."""
FAILURE = "failure"
"""Why there is no value; such a trial counts."""
ABANDONED = "abandoned"
"""Why the trial stopped without a fault of its own; such a trial does not count."""
NEEDLESS = "needless"
"""Present in an abandoned trial that none replaces: others had begun all that were wanted."""
RETRY_OF = "retry_of"
"""Number of the abandoned trial that this one replaces."""
BEGUN = "begun"
"""Present once its measurement began; trials of a round may wait for each other."""
DEATHS = "deaths"
"""How many measurements of these parameters ended with their process, or took others with them."""

RESCORED = "rescored"
"""Study attribute: a best trial's number, and its mean divergence on held-out samples."""

Outcome = Literal["complete", "stopped", "failed", "abandoned", "running", "waiting"]
"""`stopped`: racing saw early that it is worse than the best, and its value is a partial mean."""


def outcome_of(trial: FrozenTrial) -> Outcome:
    """How a trial ended, in our words."""
    if trial.state is TrialState.COMPLETE:
        return "complete" if is_full(trial) else "stopped"
    if trial.state is TrialState.PRUNED:
        return "stopped"
    if trial.state is TrialState.FAIL:
        return "failed" if FAILURE in trial.user_attrs else "abandoned"
    return "running" if trial.state is TrialState.RUNNING else "waiting"


def counts(trial: FrozenTrial) -> bool:
    """Whether a trial is one of those that were asked for."""
    return outcome_of(trial) in ("complete", "stopped", "failed")


def num_counted(trials: Iterable[FrozenTrial]) -> int:
    """How many of the asked trials are done."""
    return sum(map(counts, trials))


def num_counted_in(storage: BaseStorage, name: str) -> int:
    """The same of a stored study; 0 where there is none of this name."""
    try:
        study = load_study(study_name=name, storage=storage)
    except KeyError:
        return 0
    return num_counted(study.get_trials(deepcopy=False))


def is_full(trial: FrozenTrial) -> bool:
    """Whether every calibration sample was measured; only such a trial may be exported."""
    values = per_sample(trial)
    if not values and WHOLE in trial.user_attrs:
        return trial.state is TrialState.COMPLETE and bool(trial.user_attrs[WHOLE])
    return (
        trial.state is TrialState.COMPLETE
        and bool(values)
        and all(value is not None and isfinite(value) for value in values)
    )


def per_sample(trial: FrozenTrial) -> tuple[float | None, ...]:
    """Divergence of each calibration sample; None where not measured; empty when none was."""
    return tuple(trial.user_attrs.get(PER_SAMPLE, ()))


def measured(trial: FrozenTrial) -> tuple[float, ...]:
    """Divergence of each sample that was measured."""
    return tuple(value for value in per_sample(trial) if value is not None)


def value_of(trial: FrozenTrial) -> float:
    """Mean divergence of a measured trial."""
    assert trial.value is not None  # callers ask only of measured trials
    return trial.value


def best_full(trials: Iterable[FrozenTrial]) -> FrozenTrial | None:
    """The first of the lowest among fully measured trials."""
    return min(
        filter(is_full, trials), key=lambda trial: (value_of(trial), trial.number), default=None
    )


def unbeaten_textbook(trials: Iterable[FrozenTrial]) -> str | None:
    """Name of the textbook strategy that no other trial beat.

    None where one did, and where none but the textbook's was measured, wholly or in part.
    """
    known = list(trials)
    best = best_full(known)
    tried = any(
        trial.user_attrs.get(TEXTBOOK) is None and outcome_of(trial) in ("complete", "stopped")
        for trial in known
    )
    return best.user_attrs.get(TEXTBOOK) if best is not None and tried else None


@dataclass(frozen=True)
class Rescored:
    """The best strategy on samples that no trial saw.

    Args:
        divergence: mean over them.
        samples: how many.
        sha256: their fingerprint.
    """

    divergence: float
    samples: int
    sha256: str


def rescored_of(study: Study, best: FrozenTrial) -> Rescored | None:
    """What was measured for this very trial on held-out samples; None when nothing was."""
    stored = dict(study.user_attrs.get(RESCORED, {}))
    return Rescored(**stored) if stored.pop("trial", None) == best.number else None


def finished(study: Study) -> Sequence[FrozenTrial]:
    """All trials that ended, in the order in which they were made."""
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]


def slot_of(study: Study, trial: FrozenTrial) -> int:
    """Place of a trial in its study, where one that replaces another has the same.

    With it, and not with the number, whatever is random in a trial is seeded: so an interrupted
    and resumed study is the same as an uninterrupted one.
    """
    if SLOT in trial.user_attrs:
        return int(trial.user_attrs[SLOT])
    taken: set[int] = set()
    for earlier in study.get_trials(deepcopy=False)[: trial.number]:
        if SLOT in earlier.user_attrs and NEEDLESS not in earlier.user_attrs:
            taken.add(int(earlier.user_attrs[SLOT]))
        elif NEEDLESS not in earlier.user_attrs:  # a process died before it wrote the slot
            taken.add(_first_free(taken))
    return _first_free(taken)


def _first_free(taken: Set[int]) -> int:
    """The first slot that no trial has: one that was needless left its own."""
    return next(slot for slot in count() if slot not in taken)
