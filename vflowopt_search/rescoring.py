"""The best strategy on samples that no trial saw: a search may fit the ones that it looks at."""

from __future__ import annotations

from collections.abc import Callable
from math import fsum

from optuna import Study

from vflowopt_search import trials
from vflowopt_search.interrupt import uninterrupted
from vflowopt_search.outcome import strategy_of
from vflowopt_search.race import MeasuresStrategies, race_step
from vflowopt_search.strategy import Strategy
from vflowopt_search.trials import best_full, rescored_of

OnStep = Callable[[int, int], None]
OnBegin = Callable[[int], None]


def rescore_once(
    study: Study,
    sha256: str,
    build: Callable[[], tuple[MeasuresStrategies, str]],
    on_begin: OnBegin | None = None,
    on_step: OnStep | None = None,
) -> bool:
    """Measure the best strategy on held-out samples, unless that was done on these very samples.

    A processor may refuse some of them, and what it takes is known once they are prepared; so
    they are compared twice with what was measured.

    Args:
        study: perhaps with a best trial.
        sha256: fingerprint of the samples as they were chosen.
        build: what measures on those that can be used, and their fingerprint.
        on_begin: called with the number of samples, where they will be measured.
        on_step: called with (samples measured, in total).

    Returns:
        Whether they were measured now.

    Raises:
        VFlowOptError: a sample cannot be measured.
    """
    if not needs_rescoring(study, sha256):
        return False
    held_out, usable = build()
    if not needs_rescoring(study, usable):
        return False
    if on_begin is not None:
        on_begin(held_out.num_samples)
    rescore(study, held_out, usable, on_step)
    return True


def needs_rescoring(study: Study, sha256: str | None = None) -> bool:
    """Whether the best trial was not measured on held-out samples yet.

    Args:
        study: perhaps with a best trial.
        sha256: fingerprint of the samples; None: any will do.
    """
    best = best_full(study.get_trials(deepcopy=False))
    if best is None:
        return False
    known = rescored_of(study, best)
    return known is None or (sha256 is not None and known.sha256 != sha256)


def rescore(
    study: Study, held_out: MeasuresStrategies, sha256: str, on_step: OnStep | None = None
) -> float:
    """Measure the best strategy on held-out samples, and keep the mean with the study.

    Args:
        study: has a fully measured trial.
        held_out: measures on samples that no trial saw.
        sha256: fingerprint of these samples.
        on_step: called with (samples measured, in total).

    Raises:
        DivergenceError: a held-out sample's divergence is not finite.
    """
    best = best_full(study.get_trials(deepcopy=False))
    assert best is not None  # callers ask `needs_rescoring` first
    mean = mean_divergence(held_out, strategy_of(best), on_step)
    rescored = {"trial": best.number, "divergence": mean, "samples": held_out.num_samples}
    with uninterrupted():
        study.set_user_attr(trials.RESCORED, {**rescored, "sha256": sha256})
    return mean


def mean_divergence(
    objective: MeasuresStrategies, strategy: Strategy, on_step: OnStep | None = None
) -> float:
    """Mean divergence over all samples, measured a few at a time.

    Raises:
        DivergenceError: one of them is not finite.
    """
    size, samples = race_step(objective.num_samples), range(objective.num_samples)
    values: list[float] = []
    for start in range(0, len(samples), size):
        values += objective.measure(strategy, samples[start : start + size])
        if on_step is not None:
            on_step(len(values), len(samples))
    return fsum(values) / len(values)
