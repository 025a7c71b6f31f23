"""What a study found: reports of its trials, and its best strategy with its provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from importlib.metadata import version
from typing import Any

from optuna import Study
from optuna.trial import FrozenTrial

from vflowopt_search import __version__, trials
from vflowopt_search.budget import mean_retained
from vflowopt_search.checkout import commit
from vflowopt_search.documents import digest
from vflowopt_search.errors import StudyError
from vflowopt_search.strategy import (
    Budget,
    CalibrationIdentity,
    Objective,
    Provenance,
    Strategy,
)
from vflowopt_search.trials import (
    Outcome,
    best_full,
    num_counted,
    outcome_of,
    rescored_of,
    value_of,
)

CONTEXT = "context"
"""Study attribute: all that the results depend on; a study is resumed with the same only."""
TYPED = ("metric", "model", "racing", "retain", "samples", "sampler", "seed", "trials_per_batch")
"""Those parts of the context that a user types."""
_FOLLOWS = {
    "calibration_sha256": ("calibration", "samples", "seed"),
    "generation_sha256": ("metric", "model"),
    **dict.fromkeys(
        ("config_sha256", "model_type", "processor_sha256", "revision", "weights_sha256"),
        ("model",),
    ),
    "vision_layers": ("model",),
}
"""What nobody types, and that of which it follows; where that differs too, it says nothing new."""
_WAYS_OUT = {"vision_layers": "give the --cache-gb that it was made with"}
VERSIONS = "versions"
"""Study attribute: the packages that began it; said, not compared."""


@dataclass(frozen=True)
class TrialReport:
    """One trial that just ended.

    Args:
        number: Optuna's number of it.
        outcome: `complete`, `stopped` by racing, or `failed`.
        value: mean divergence of the samples seen; None when failed.
        best: lowest divergence so far of a fully measured trial.
        samples_seen: how many samples were measured.
        seconds: how long that took.
        done: trials that count so far.
        total: trials asked for.
        textbook: name of the textbook strategy that it was.
        failure: why there is no value.
        others_follow: whether trials that were measured together with it are told next.
    """

    number: int
    outcome: Outcome
    value: float | None
    best: float | None
    samples_seen: int
    seconds: float
    done: int
    total: int
    textbook: str | None
    failure: str | None
    others_follow: bool = False


@dataclass(frozen=True)
class StudyOutcome:
    """What a run left.

    Args:
        study: the Optuna study.
        best: the best fully measured strategy with its provenance; None when there is none yet.
        best_trial: the trial that measured it.
        divergence: its mean divergence.
        per_sample: its divergence on each calibration sample, by the sample's number.
        finished: whether all trials that were asked for are done.
        interrupted: whether Ctrl-C ended the run; the running trial is tried again next time.
    """

    study: Study
    best: Strategy | None
    best_trial: FrozenTrial | None
    divergence: float | None
    per_sample: tuple[float, ...]
    finished: bool
    interrupted: bool

    @property
    def textbook(self) -> str | None:
        """Name of the textbook strategy that no trial beat (see `trials.unbeaten_textbook`)."""
        return trials.unbeaten_textbook(self.study.get_trials(deepcopy=False))


def report_of(
    study: Study, trial: FrozenTrial, total: int, *, others_follow: bool = False
) -> TrialReport:
    """What there is to say when a trial ends."""
    everything = study.get_trials(deepcopy=False)
    best = best_full(everything)
    return TrialReport(
        number=trial.number,
        outcome=outcome_of(trial),
        value=trial.value,
        best=value_of(best) if best is not None else None,
        samples_seen=trial.user_attrs.get(trials.SAMPLES_SEEN, 0),
        seconds=trial.user_attrs.get(trials.SECONDS, 0.0),
        done=num_counted(everything),
        total=total,
        textbook=trial.user_attrs.get(trials.TEXTBOOK),
        failure=trial.user_attrs.get(trials.FAILURE),
        others_follow=others_follow,
    )


def outcome_of_study(study: Study, total: int, *, interrupted: bool) -> StudyOutcome:
    """What a run left in its study."""
    everything = study.get_trials(deepcopy=False)
    best = best_full(everything)
    return StudyOutcome(
        study=study,
        best=best_strategy(study),
        best_trial=best,
        divergence=value_of(best) if best is not None else None,
        per_sample=trials.measured(best) if best is not None else (),
        finished=num_counted(everything) >= total,
        interrupted=interrupted,
    )


def best_strategy(study: Study) -> Strategy | None:
    """The best fully measured strategy of a study with its provenance; None when there is none."""
    best = best_full(study.get_trials(deepcopy=False))
    if best is None:
        return None
    strategy = strategy_of(best)
    return strategy.model_copy(
        update={
            "name": study.study_name,
            "budget": strategy.budget or _budget(strategy),
            "provenance": _provenance(study, best),
        }
    )


def strategy_of(trial: FrozenTrial) -> Strategy:
    """The strategy that a trial measured."""
    return Strategy.loads(trial.user_attrs[trials.STRATEGY], f"trial {trial.number}")


def claim_context(study: Study, given: Mapping[str, str]) -> None:
    """Write what a new study depends on; refuse another one for an old study.

    Raises:
        StudyError: the study was made in another context.
    """
    if not study.get_trials(deepcopy=False):
        study.set_user_attr(CONTEXT, dict(given))
        study.set_user_attr(VERSIONS, versions())
        return
    check_context(study, dict.fromkeys(study.user_attrs.get(CONTEXT, {})) | dict(given))


def check_context(study: Study, known: Mapping[str, str | None]) -> None:
    """Refuse a study that was made in another context, as far as this one is known.

    Args:
        study: perhaps without trials, and then of no context yet.
        known: parts of the context; None is one that there is not.

    Raises:
        StudyError: one of them differs.
    """
    stored = study.user_attrs.get(CONTEXT, {})
    if not study.get_trials(deepcopy=False):
        return
    differing = [name for name in known if stored.get(name) != known[name]]
    # what was typed says more than the fingerprints that follow from it
    told = sorted(
        (name for name in differing if not set(_FOLLOWS.get(name, ())) & set(differing)),
        key=lambda name: (name not in TYPED, name),
    )
    if told:
        ways = dict.fromkeys(_WAYS_OUT.get(name, "give the same") for name in told)
        raise StudyError(
            f"study {study.study_name!r} was made with {_listed(told, stored)} but is resumed "
            f"with {_listed(told, known)}; {' and '.join(ways)}, or another output folder for a "
            f"new study"
        )


def _listed(names: Sequence[str], context: Mapping[str, str | None]) -> str:
    """`retain 0.1, samples 256`: settings with their values."""
    return ", ".join(f"{name} {_plain(context.get(name))}" for name in names)


def _plain(value: str | None) -> str:
    """A name in quotes; a number, yes or no without."""
    try:
        float(value or "")
    except ValueError:
        return str(value) if value in (None, "True", "False", "None") else repr(value)
    return str(value)


def context_sha256(study: Study) -> str:
    """Fingerprint of all that a study's results depend on, shortened."""
    return digest(study.user_attrs.get(CONTEXT, {}))


def versions() -> dict[str, str]:
    """The packages that results depend on, and the commit of this one where it is a checkout."""
    others = {name: version(name) for name in ("optuna", "torch", "transformers")}
    running = commit()
    ours = {"vflowopt-search": __version__} | ({} if running is None else {"commit": running})
    return {**ours, **others}


def _budget(strategy: Strategy) -> Budget | None:
    if strategy.model is None:
        return None
    return Budget(mean_retained=mean_retained(strategy.stages, strategy.model.decoder_layers))


def _provenance(study: Study, trial: FrozenTrial) -> Provenance:
    context = study.user_attrs.get(CONTEXT, {})
    assert trial.datetime_complete is not None  # it is complete
    rescored = rescored_of(study, trial)
    return Provenance(
        study=study.study_name,
        trial=trial.number,
        textbook=trials.unbeaten_textbook(study.get_trials(deepcopy=False)),
        objective=Objective(
            divergence=trial.value,
            metric=context["metric"],
            held_out=None if rescored is None else rescored.divergence,
        ),
        calibration=_calibration(context, None if rescored is None else rescored.samples),
        versions=study.user_attrs.get(VERSIONS, {}),
        # Optuna's times are local and without a zone.
        created=trial.datetime_complete.astimezone(UTC).isoformat(timespec="seconds"),
    )


def _calibration(context: Mapping[str, Any], held_out: int | None) -> CalibrationIdentity | None:
    if "calibration_sha256" not in context:
        return None
    return CalibrationIdentity(
        name=context.get("calibration", ""),
        samples=int(context["samples"]),
        sha256=context["calibration_sha256"],
        held_out=held_out,
    )
