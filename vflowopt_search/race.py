"""Trials of one round: each draws a strategy, and all are measured until they are hopeless."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, fsum
from typing import Any, Protocol

import optuna
from optuna import Study, Trial
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, NopPruner, WilcoxonPruner
from optuna.trial import FrozenTrial, TrialState

from vflowopt_search import trials
from vflowopt_search.errors import DivergenceError, OutOfMemoryError, VFlowOptError
from vflowopt_search.sampling import SlotSampler, sample_order
from vflowopt_search.strategy import Strategy
from vflowopt_search.trials import best_full

OUT_OF_MEMORY = (OutOfMemoryError, MemoryError)
"""Errors of a trial for which there was no room, on the device or on the host."""
_SLOW_SAMPLES = 13
"""Up to so many samples, scipy's signed-rank test enumerates permutations when there are ties."""


class MeasuresStrategies(Protocol):
    """What a study minimises: the divergence of strategies on numbered calibration samples."""

    @property
    def num_samples(self) -> int:
        """How many calibration samples there are."""

    @property
    def metric(self) -> str:
        """Name of the divergence."""

    def measure(self, strategy: Strategy, indices: Sequence[int]) -> Sequence[float]:
        """Divergence of each of these samples, lower is better.

        Raises:
            DivergenceError: one of them is not finite.
            OutOfMemoryError: one of them does not fit in memory.
        """

    def measure_many(
        self, strategies: Sequence[Strategy], indices: Sequence[int]
    ) -> Sequence[Sequence[float]]:
        """For each strategy what `measure` gives.

        Raises:
            DivergenceError: one of them is not finite.
            OutOfMemoryError: one of them does not fit in memory.
        """


class DrawsStrategies(Protocol):
    """What a study searches: a `BoundSpace`."""

    def suggest(self, trial: Any, retain: float, name: str = ...) -> Strategy:
        """A strategy at exactly this budget."""

    def textbook(self) -> Mapping[str, Mapping[str, Any]]:
        """Named assignments to try first."""


@dataclass(eq=False)
class Runner:
    """A trial on its way.

    Attributes:
        trial: Optuna's.
        slot: its place in the study.
        strategy: what it measures.
        seen: divergence of each sample measured, by its number.
        seconds: its share of the time that this took.
        failure: why there will be no value.
    """

    trial: Trial
    slot: int
    strategy: Strategy
    seen: dict[int, float] = field(default_factory=dict)
    seconds: float = 0.0
    failure: VFlowOptError | MemoryError | None = None

    @property
    def value(self) -> float:
        """Mean divergence over the samples seen."""
        return fsum(self.seen.values()) / len(self.seen)

    @property
    def suspect(self) -> bool:
        """Whether a process ended while it measured this strategy, perhaps because of it."""
        return int(self.trial.user_attrs.get(trials.DEATHS, 0)) > 0


@dataclass(frozen=True)
class Race:
    """Draws strategies for trials, and measures those of a round together.

    With racing, samples come in an order of the round's own, and every `race_step` of them the
    pruner compares each trial, sample by sample, with the best one from before the round. A trial
    that it stops has the mean of the samples seen as its value (search.md), and remains marked as
    partly measured; the others go on.

    Args:
        objective: what is minimised.
        space: what is searched.
        sampler: knows the slot of the trial that was asked last.
        name: of the study; strategies are called after it.
        retain: budget of every strategy.
        seed: the study's seed.
        trials_per_batch: trials of a round.
    """

    objective: MeasuresStrategies
    space: DrawsStrategies
    sampler: SlotSampler
    name: str
    retain: float
    seed: int
    trials_per_batch: int = 1

    def enter(self, trial: Trial) -> Runner:
        """Draw the strategy of the trial that was asked last."""
        slot = self.sampler.slot
        trial.set_user_attr(trials.SLOT, slot)
        textbook = list(self.space.textbook())
        if slot < len(textbook):
            trial.set_user_attr(trials.TEXTBOOK, textbook[slot])
        strategy = self.space.suggest(trial, self.retain, name=f"{self.name}-{slot}")
        trial.set_user_attr(trials.STRATEGY, strategy.to_json())
        return Runner(trial, slot, strategy)

    def run(self, study: Study, runners: Sequence[Runner]) -> None:
        """Measure runners of one round together, each until it is hopeless or done.

        Raises:
            VFlowOptError: one of them cannot be measured for another reason than its divergence
                or its memory, and `failure` says which.
        """
        for runner in runners:
            runner.trial.set_user_attr(trials.BEGUN, True)
        first = min(runner.slot for runner in runners) // self.trials_per_batch
        first *= self.trials_per_batch
        rival = _rival(study, range(first, first + self.trials_per_batch))
        order = sample_order(self.objective.num_samples, self.seed, first)
        step, going = race_step(len(order)), list(runners)
        for start in range(0, len(order), step):
            going = [runner for runner in going if not _hopeless(study.pruner, rival, runner)]
            if not going:
                break
            going = self._measure(going, order[start : start + step])

    def _measure(self, runners: list[Runner], samples: Sequence[int]) -> list[Runner]:
        """Measure these samples; returns the runners that did not fail."""
        start = time.perf_counter()
        try:
            found = self.objective.measure_many([each.strategy for each in runners], samples)
        except (VFlowOptError, MemoryError) as error:
            if len(runners) == 1:
                runners[0].failure = error
                if not isinstance(error, (DivergenceError, *OUT_OF_MEMORY)):
                    raise
                # their frames hold the tensors of the batch, for which there may be no room
                error.__traceback__ = error.__cause__ = error.__context__ = None
                return []
            found = None
        if found is None:  # one by one it shows whose error it was
            return [left for each in runners for left in self._measure([each], samples)]
        share = (time.perf_counter() - start) / len(runners)
        for runner, values in zip(runners, found, strict=True):
            runner.seconds += share
            for sample, value in zip(samples, values, strict=True):
                runner.trial.report(value, step=sample)
                runner.seen[sample] = value
        return runners


def race_step(num_samples: int) -> int:
    """Samples between two looks at whether a trial is hopeless.

    Of nothing else, so that a study does not depend on how many samples fit in memory.
    """
    return max(8, ceil(num_samples / 8))


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


def _rival(study: Study, slots: range) -> Study:
    """A study of the best trial only; those of the round, in `slots`, are not among its rivals.

    Where a killed round goes on, some of them may be finished: what they are compared with must
    not depend on that.
    """
    others = (
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.user_attrs.get(trials.SLOT) not in slots
    )
    alone = optuna.create_study(direction="minimize")
    best = best_full(others)
    if best is not None:
        alone.add_trial(best)
    return alone


def _hopeless(pruner: BasePruner, rival: Study, runner: Runner) -> bool:
    state = TrialState.RUNNING
    return pruner.prune(rival, optuna.create_trial(state=state, intermediate_values=runner.seen))
