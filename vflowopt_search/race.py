"""One trial: a strategy is drawn, and measured on calibration samples until it is hopeless."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import fsum
from types import TracebackType
from typing import Any, Protocol

from optuna import Study, Trial
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, NopPruner, WilcoxonPruner
from optuna.trial import FrozenTrial

from vflowopt_search import trials
from vflowopt_search.processes import this_process
from vflowopt_search.sampling import SlotSampler, sample_order
from vflowopt_search.strategy import Strategy
from vflowopt_search.trials import best_full

_SLOW_SAMPLES = 13
"""Up to so many samples, scipy's signed-rank test enumerates permutations when there are ties."""


class MeasuresStrategies(Protocol):
    """What a study minimises: the divergence of a strategy on numbered calibration samples."""

    @property
    def num_samples(self) -> int:
        """How many calibration samples there are."""

    @property
    def batch_size(self) -> int:
        """How many samples are measured together."""

    @property
    def metric(self) -> str:
        """Name of the divergence."""

    def measure(self, strategy: Strategy, indices: Sequence[int]) -> Sequence[float]:
        """Divergence of each of these samples, lower is better.

        Raises:
            DivergenceError: one of them is not finite.
        """


class DrawsStrategies(Protocol):
    """What a study searches: a `BoundSpace`."""

    def suggest(self, trial: Any, retain: float, name: str = ...) -> Strategy:
        """A strategy at exactly this budget."""

    def textbook(self) -> Mapping[str, Mapping[str, Any]]:
        """Named assignments to try first."""


@dataclass(frozen=True)
class Race:
    """Measures one trial; what Optuna's `optimize` calls.

    With racing, samples come in an order of the trial's own, and after each batch the pruner
    compares them, sample by sample, with the best trial. A trial that it stops has the mean of
    the samples seen as its value (search.md), and remains marked as partly measured.

    Args:
        objective: what is minimised.
        space: what is searched.
        sampler: knows the slot of the trial.
        name: of the study; strategies are called after it.
        retain: budget of every strategy.
        seed: the study's seed.
        racing: whether hopeless trials are stopped.
    """

    objective: MeasuresStrategies
    space: DrawsStrategies
    sampler: SlotSampler
    name: str
    retain: float
    seed: int
    racing: bool

    def __call__(self, trial: Trial) -> float:
        """Mean divergence over the samples seen."""
        with _ReasonKept(trial):
            strategy = self._draw(trial)
            start = time.perf_counter()
            seen = self._measure(trial, strategy)
            trial.set_user_attr(trials.SECONDS, round(time.perf_counter() - start, 6))
            samples = range(self.objective.num_samples)
            trial.set_user_attr(trials.PER_SAMPLE, [seen.get(sample) for sample in samples])
            trial.set_user_attr(trials.SAMPLES_SEEN, len(seen))
            return fsum(seen.values()) / len(seen)

    def _draw(self, trial: Trial) -> Strategy:
        slot = self.sampler.slot
        trial.set_user_attr(trials.OWNER, this_process())
        trial.set_user_attr(trials.SLOT, slot)
        textbook = list(self.space.textbook())
        if slot < len(textbook):
            trial.set_user_attr(trials.TEXTBOOK, textbook[slot])
        strategy = self.space.suggest(trial, self.retain, name=f"{self.name}-{slot}")
        trial.set_user_attr(trials.STRATEGY, strategy.to_json())
        return strategy

    def _measure(self, trial: Trial, strategy: Strategy) -> dict[int, float]:
        """Divergence of each sample seen, by its number."""
        order = sample_order(self.objective.num_samples, self.seed, self.sampler.slot)
        batch_size = self.objective.batch_size
        seen: dict[int, float] = {}
        for start in range(0, len(order), batch_size):
            if seen and self.racing and trial.should_prune():
                break
            batch = order[start : start + batch_size]
            for sample, value in zip(batch, self.objective.measure(strategy, batch), strict=True):
                trial.report(value, step=sample)
                seen[sample] = value
        return seen


def stopping_rule(*, racing: bool) -> BasePruner:
    """When a trial is hopeless: with racing, by a signed-rank test on the samples it has seen.

    A trial is stopped only while its mean is above that of the best, so it never becomes the best.
    """
    if not racing:
        return NopPruner()
    with warnings.catch_warnings():
        # The one pruner for samples in any order is experimental in Optuna 5.0.
        warnings.simplefilter("ignore", ExperimentalWarning)
        # search.md: with these, a quarter of the sample evaluations is as good as all.
        return _QuickWilcoxonPruner(p_threshold=0.1, n_startup_steps=8)


class _QuickWilcoxonPruner(WilcoxonPruner):
    """Waits for more samples where scipy would enumerate all permutations, for seconds a time.

    It does that with few samples of which some differ equally from the best trial: usual, for two
    strategies often keep the same tokens of a sample.
    """

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether the trial is hopeless."""
        values = trial.intermediate_values
        if len(values) <= _SLOW_SAMPLES and (best := best_full(study.get_trials(deepcopy=False))):
            apart = [abs(value - best.intermediate_values[step]) for step, value in values.items()]
            if len({0.0, *apart}) <= len(apart):
                return False
        return super().prune(study, trial)


class _ReasonKept(AbstractContextManager[None]):
    """Writes down why a trial ends without a value; lets every error through."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, KeyboardInterrupt):
            self._trial.set_user_attr(trials.ABANDONED, "interrupted")
        elif isinstance(error, Exception):
            self._trial.set_user_attr(trials.FAILURE, f"{type(error).__name__}: {error}"[:500])
