"""The best strategy on samples that no trial saw: a search may fit the ones that it looks at."""

from __future__ import annotations

from math import fsum

from optuna import Study

from vflowopt_search import trials
from vflowopt_search.outcome import strategy_of
from vflowopt_search.race import MeasuresStrategies
from vflowopt_search.trials import best_full, rescored_of


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


def rescore(study: Study, held_out: MeasuresStrategies, sha256: str) -> float:
    """Measure the best strategy on held-out samples, and keep the mean with the study.

    Args:
        study: has a fully measured trial.
        held_out: measures on samples that no trial saw.
        sha256: fingerprint of these samples.

    Raises:
        DivergenceError: a held-out sample's divergence is not finite.
    """
    best = best_full(study.get_trials(deepcopy=False))
    assert best is not None  # callers ask `needs_rescoring` first
    values = held_out.measure(strategy_of(best), range(held_out.num_samples))
    mean = fsum(values) / len(values)
    study.set_user_attr(
        trials.RESCORED,
        {"trial": best.number, "divergence": mean, "samples": len(values), "sha256": sha256},
    )
    return mean
