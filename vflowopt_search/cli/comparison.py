"""The found strategy beside plain ones at the same budget, and beside the whole model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from typing import TYPE_CHECKING, Any

from rich.table import Table

from vflowopt_search.cli.console import table

if TYPE_CHECKING:
    from vflowopt_search.calibration.samples import Sample
    from vflowopt_search.race import MeasuresStrategies
    from vflowopt_search.strategy import Strategy

FOUND = "found"
UNPRUNED = "unpruned"
OnStep = Callable[[int, int], None]


@dataclass(frozen=True)
class Row:
    """One line of the comparison.

    Attributes:
        name: of the strategy.
        retained: share of visual tokens alive, averaged over decoder layers.
        divergence: mean over all calibration samples; lower is better.
        accuracy: share of held-out questions answered right; None where not measured.
        accuracy_kept: accuracy relative to the whole model's; None where not measured.
    """

    name: str
    retained: float
    divergence: float
    accuracy: float | None = None
    accuracy_kept: float | None = None


def mean_divergences(
    objective: MeasuresStrategies, strategies: Mapping[str, Strategy], on_step: OnStep
) -> dict[str, float]:
    """Mean divergence of each strategy over all calibration samples."""
    size, samples = objective.batch_size, range(objective.num_samples)
    means, total = {}, len(strategies) * len(samples)
    for number, (name, strategy) in enumerate(strategies.items()):
        values: list[float] = []
        for start in range(0, len(samples), size):
            values += objective.measure(strategy, samples[start : start + size])
            on_step(number * len(samples) + len(values), total)
        means[name] = fsum(values) / len(values)
    return means


def accuracies(
    loaded: tuple[Any, Any],
    samples: Sequence[Sample],
    strategies: Mapping[str, Strategy],
    on_step: OnStep,
) -> dict[str, float]:
    """Share of right answers with each strategy, and of the whole model as `unpruned`."""
    from vflowopt_search.evaluate.answers import Asking
    from vflowopt_search.evaluate.evaluation import evaluate

    measured = evaluate(Asking(*loaded), samples, strategies, progress=on_step)
    kept = {result.name: result.accuracy for result in measured.results}
    return {UNPRUNED: measured.unpruned, **kept}


def rows(
    retain: float, divergences: Mapping[str, float], accuracy: Mapping[str, float]
) -> list[Row]:
    """The whole model first where its accuracy is known, then each strategy."""
    whole = accuracy.get(UNPRUNED)
    first = [] if whole is None else [Row(UNPRUNED, 1.0, 0.0, whole, 1.0)]
    return first + [
        Row(name, retain, divergence, accuracy.get(name), _kept(accuracy.get(name), whole))
        for name, divergence in divergences.items()
    ]


def baselines(comparison: Sequence[Row]) -> dict[str, float]:
    """Divergence of the plain strategies among the rows."""
    return {row.name: row.divergence for row in comparison if row.name not in (FOUND, UNPRUNED)}


def rendered(comparison: Sequence[Row]) -> Table:
    """The comparison as people read it."""
    labelled = any(row.accuracy is not None for row in comparison)
    columns = ["strategy", "tokens kept", "divergence"] + labelled * ["accuracy", "accuracy kept"]
    return table(columns, [_cells(row, labelled) for row in comparison])


def _cells(row: Row, labelled: bool) -> list[str]:
    cells = [row.name, f"{row.retained:.1%}", f"{row.divergence:.5f}"]
    measured = [row.accuracy, row.accuracy_kept] if labelled else []
    return cells + ["" if share is None else f"{share:.1%}" for share in measured]


def _kept(accuracy: float | None, whole: float | None) -> float | None:
    return accuracy / whole if accuracy is not None and whole else None
