"""The search's choices, one changed at a time: sampler, budget scheme, racing, first trials."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from numpy.random import SeedSequence
from optuna import Study, TrialPruned
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, CmaEsSampler, TPESampler
from optuna.trial import FixedTrial, FrozenTrial, TrialState

from vflowopt_search.budget import mean_retained
from vflowopt_search.parameters import Assignment, Parameter
from vflowopt_search.race import DrawsStrategies
from vflowopt_search.sampling import SamplerName, SlotSampler
from vflowopt_search.search_space import BoundSpace, ModelFacts, SearchSpace
from vflowopt_search.strategy import Budget, Stage, Strategy

PUBLISHED_KEEP = Parameter(low=0.05, high=1.0)
"""Free ratios are uniform where relative ones are log-uniform: most small ones waste the budget."""

MakeSampler = Callable[[int], BaseSampler]


def optuna_default(seed: int) -> BaseSampler:
    """What Optuna 5.0 takes when it is told nothing: multivariate TPE without groups."""
    return TPESampler(seed=seed)


def cma_es(seed: int) -> BaseSampler:
    """CMA-ES for the numbers that every trial has; univariate TPE for all else."""
    return CmaEsSampler(
        seed=seed,
        independent_sampler=TPESampler(seed=seed, multivariate=False),
        warn_independent_sampling=False,
    )


@dataclass(frozen=True)
class Configuration:
    """A way to search; the defaults are those of the product.

    Args:
        sampler: a name that the product knows, or what makes another sampler from a seed.
        racing: whether hopeless trials are stopped.
        textbook: whether the textbook's strategies are tried first.
        derived: whether the last keep ratio is derived from the budget, as published, where the
            product scales all of them.
    """

    sampler: SamplerName | MakeSampler = "tpe"
    racing: bool = True
    textbook: bool = True
    derived: bool = False

    def bind(self, space: SearchSpace, facts: ModelFacts, retain: float) -> DrawsStrategies:
        """What is searched."""
        chosen = space if self.textbook else space.model_copy(update={"textbook": {}})
        if not self.derived:
            return chosen.bind(facts)
        stages = chosen.stages.model_copy(update={"keep": PUBLISHED_KEEP})
        return DerivedSpace(chosen.model_copy(update={"stages": stages}).bind(facts), retain)


DEFAULT = "default"
CONFIGURATIONS = {
    DEFAULT: Configuration(),
    "random": Configuration(sampler="random"),
    "tpe-multivariate": Configuration(sampler="tpe-multivariate"),
    "tpe-optuna": Configuration(sampler=optuna_default),
    "cma-es": Configuration(sampler=cma_es),
    "no-racing": Configuration(racing=False),
    "no-textbook": Configuration(textbook=False),
    "derived": Configuration(derived=True),
    "gp-no-racing": Configuration(sampler="gp", racing=False),
    "random-alone": Configuration(sampler="random", racing=False, textbook=False),
}


@dataclass(frozen=True)
class DerivedSpace:
    """The same space by the published scheme: keep ratios are free, the last one is derived.

    A drawn `stage2_keep` stands for the first ratio, as a share of the most that the budget
    allows, and a drawn `stage3_keep` for the second; so there are as many parameters.

    Args:
        bound: the space, for one model.
        retain: the budget.
    """

    bound: BoundSpace
    retain: float

    def suggest(self, trial: Any, retain: float, name: str = "trial") -> Strategy:
        """A strategy that retains `retain`, or less where the last ratio is clipped at 1.

        Raises:
            TrialPruned: nothing is left for the last ratio.
        """
        scaled = self.bound.suggest(trial, retain, name=name)
        num_layers = self.bound.facts.identity.decoder_layers
        layers = [stage.layer for stage in scaled.stages]
        keep = self.bound.space.stages.keep
        drawn = [
            trial.params[f"stage{stage}_keep"] if keep.fixed is None else float(keep.fixed)
            for stage in range(2, len(layers) + 1)
        ]
        ratios = derive_last(layers, drawn, num_layers, retain)
        if ratios is None:
            raise TrialPruned
        stages = tuple(
            stage.model_copy(update={"keep_ratio": ratio})
            for stage, ratio in zip(scaled.stages, ratios, strict=True)
        )
        kept = Budget(mean_retained=mean_retained(stages, num_layers))
        return scaled.model_copy(update={"stages": stages, "budget": kept})

    def textbook(self) -> Mapping[str, Assignment]:
        """The same strategies, said by what is drawn here."""
        return {name: self._redrawn(point) for name, point in self.bound.textbook().items()}

    def _redrawn(self, point: Assignment) -> Assignment:
        stages = self.bound.suggest(FixedTrial(point), self.retain).stages
        drawn = as_drawn(stages, self.bound.facts.identity.decoder_layers, self.retain)
        said = {f"stage{stage}_keep": ratio for stage, ratio in enumerate(drawn, start=2)}
        return {name: said.get(name, value) for name, value in point.items()}


def derive_last(
    layers: Sequence[int], drawn: Sequence[float], num_layers: int, retain: float
) -> list[float] | None:
    """Keep ratios whose last is derived from the budget and clipped at 1; None if none is left.

    `drawn` are all ratios but the last; the first as a share of the most that `retain` allows.
    """
    free = [drawn[0] * most_first(layers, num_layers, retain), *drawn[1:]] if drawn else []
    alive, left = 1.0, retain * num_layers - layers[0]
    for ratio, start, end in zip(free, layers, layers[1:], strict=False):
        alive *= ratio
        left -= alive * (end - start)
    last = left / (alive * (num_layers - layers[-1]))
    return [*free, min(1.0, last)] if last > 0 else None


def as_drawn(stages: Sequence[Stage], num_layers: int, retain: float) -> list[float]:
    """What has to be drawn for these keep ratios."""
    if len(stages) == 1:
        return []
    layers = [stage.layer for stage in stages]
    first, *others = [stage.keep_ratio for stage in stages[:-1]]
    return [first / most_first(layers, num_layers, retain), *others]


def most_first(layers: Sequence[int], num_layers: int, retain: float) -> float:
    """The most that the first of several stages may keep before the budget is spent."""
    return min(1.0, (retain * num_layers - layers[0]) / (layers[1] - layers[0]))


class TimedSampler(SlotSampler):
    """Draws as a study does, from any sampler, and counts the processor seconds that it takes."""

    def __init__(
        self, sampler: SamplerName | MakeSampler, seed: int, textbook: Sequence[Mapping[str, Any]]
    ) -> None:
        self._make = sampler if callable(sampler) else None
        self.seconds = 0.0
        super().__init__("tpe" if callable(sampler) else sampler, seed, textbook)

    def _fresh(self, slot: int) -> BaseSampler:
        if self._make is None:
            return super()._fresh(slot)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return self._make(int(SeedSequence([self._seed, slot]).generate_state(1)[0]))

    @contextmanager
    def _timed(self) -> Iterator[None]:
        start = time.process_time()
        yield
        self.seconds += time.process_time() - start

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        with self._timed():
            super().before_trial(study, trial)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        with self._timed():
            return super().infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        with self._timed():
            return super().sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        with self._timed():
            return super().sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        with self._timed():
            super().after_trial(study, trial, state, values)
