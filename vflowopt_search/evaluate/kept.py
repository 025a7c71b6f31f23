"""Divergences that are kept as they are measured: a run that was killed measures the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from vflowopt_search.calibration.samples import Sample
from vflowopt_search.evaluate.ledger import Ledger
from vflowopt_search.evaluate.queue import content_of, item_of
from vflowopt_search.objective import Objective
from vflowopt_search.strategy import Strategy

VALUE = "divergence"


@dataclass(frozen=True)
class KeptObjective:
    """An objective that measures no sample twice under one strategy.

    What is known is known of these very weights, this processor, precision and metric, of what
    the strategy does whatever it is called, and of what the sample asks and shows.

    Args:
        objective: measures what is not known yet.
        samples: those that it measures, in its order.
        ledger: keeps the divergences; on disk when `measure` returns.
    """

    objective: Objective
    samples: Sequence[Sample]
    ledger: Ledger

    @property
    def num_samples(self) -> int:
        """How many samples there are."""
        return self.objective.num_samples

    @property
    def metric(self) -> str:
        """Name of the divergence."""
        return self.objective.metric

    @cached_property
    def _items(self) -> list[str]:
        return [item_of(sample) for sample in self.samples]

    def measure(self, strategy: Strategy, indices: Sequence[int]) -> list[float]:
        """Divergence of each of these samples.

        Where one of them is not known all are measured: a value may depend, in its last digits,
        on what shares its batch, and then a run that was killed would end as no other does.

        Raises:
            VFlowOptError: a sample cannot be measured, or the ledger cannot be written.
        """
        heading = self._heading(strategy)
        new = [i for i in indices if self.ledger.known(heading, self._items[i]) is None]
        if new:
            values = dict(zip(indices, self.objective.measure(strategy, indices), strict=True))
            self.ledger.add(heading, {self._items[i]: {VALUE: values[i]} for i in new})
        known = [self.ledger.known(heading, self._items[i]) or {} for i in indices]
        return [float(one[VALUE]) for one in known]

    def measure_many(
        self, strategies: Sequence[Strategy], indices: Sequence[int]
    ) -> list[list[float]]:
        """For each strategy what `measure` gives."""
        return [self.measure(strategy, indices) for strategy in strategies]

    def _heading(self, strategy: Strategy) -> str:
        content = {"measured": VALUE, "metric": self.metric, **self.objective.fingerprint}
        return self.ledger.heading({**content, "strategy": content_of(strategy)})
