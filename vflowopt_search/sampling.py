"""Which sampler draws a study's parameters, seeded anew for each trial."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from numpy.random import SeedSequence, default_rng
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from vflowopt_search.processes import this_process
from vflowopt_search.trials import OWNER, slot_of

SamplerName = Literal["tpe", "tpe-multivariate", "gp", "random"]


class SlotSampler(BaseSampler):
    """Draws each trial from a fresh sampler, seeded by the study's seed and the trial's slot.

    A sampler that lives through a study restarts its random stream when the study is resumed;
    this one has no stream to restart. The first trials are given, not drawn: the textbook's.

    Args:
        name: the kind of sampler; `tpe` draws each parameter on its own: on the shipped model no
            other sampler finds better strategies at equal cost (studies/README.md).
        seed: the study's seed.
        textbook: assignments of the first trials, one each.
    """

    def __init__(self, name: SamplerName, seed: int, textbook: Sequence[Mapping[str, Any]]) -> None:
        self._name = name
        self._seed = seed
        self._textbook = textbook
        self._given: Mapping[str, Any] = {}
        self._inner = self._fresh(0)
        self.slot = 0

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Say whose this trial is, and make its sampler."""
        # first of all, for a trial that nobody signs is taken for a dead worker's
        study._storage.set_trial_user_attr(trial._trial_id, OWNER, this_process())
        self.slot = slot_of(study, trial)
        self._given = self._textbook[self.slot] if self.slot < len(self._textbook) else {}
        self._inner = self._fresh(self.slot)
        self._inner.before_trial(study, trial)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """What is drawn jointly: nothing that is given."""
        return {} if self._given else self._inner.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """A joint draw."""
        return {} if self._given else self._inner.sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """The given value, or a draw of one parameter alone."""
        if param_name in self._given:
            return self._given[param_name]
        return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Tell the trial's sampler that it ended."""
        self._inner.after_trial(study, trial, state, values)

    def _fresh(self, slot: int) -> BaseSampler:
        seed = int(SeedSequence([self._seed, slot]).generate_state(1)[0])
        with warnings.catch_warnings():
            # `group` and `deterministic_objective` are experimental in Optuna 5.0.
            warnings.simplefilter("ignore", ExperimentalWarning)
            # A constant liar takes the trials that run, of a round or of other workers, for bad
            # ones, and so keeps away from them.
            if self._name == "tpe":
                return TPESampler(seed=seed, multivariate=False, constant_liar=True)
            if self._name == "tpe-multivariate":
                return TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)
            if self._name == "gp":
                return GPSampler(
                    seed=seed, deterministic_objective=True, warn_independent_sampling=False
                )
            return RandomSampler(seed=seed)


def sample_order(num_samples: int, seed: int, slot: int) -> list[int]:
    """The order in which the round whose first slot this is sees the calibration samples."""
    # The third number keeps this stream apart from the sampler's.
    return [int(sample) for sample in default_rng([seed, slot, 1]).permutation(num_samples)]
