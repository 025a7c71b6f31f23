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
        held_out: mean divergence over samples that no trial saw; None where not measured.
        accuracy: share of held-out questions answered right; None where not measured.
        accuracy_kept: accuracy relative to the whole model's; None where not measured.
    """

    name: str
    retained: float
    divergence: float
    held_out: float | None = None
    accuracy: float | None = None
    accuracy_kept: float | None = None


def mean_divergences(
    objective: MeasuresStrategies, strategies: Mapping[str, Strategy], on_step: OnStep
) -> dict[str, float]:
    """Mean divergence of each strategy over all calibration samples."""
    from vflowopt_search.race import race_step

    size, samples = race_step(objective.num_samples), range(objective.num_samples)
    means, total = {}, len(strategies) * len(samples)
    for number, (name, strategy) in enumerate(strategies.items()):
        values: list[float] = []
        for start in range(0, len(samples), size):
            values += objective.measure(strategy, samples[start : start + size])
            on_step(number * len(samples) + len(values), total)
        means[name] = fsum(values) / len(values)
    return means


def held_out_of(best: Strategy) -> dict[str, float]:
    """What the found strategy's file states of held-out samples."""
    measured = best.provenance.objective if best.provenance is not None else None
    known = None if measured is None else measured.held_out
    return {} if known is None else {FOUND: known}


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
    retain: float,
    divergences: Mapping[str, float],
    accuracy: Mapping[str, float],
    held_out: Mapping[str, float],
) -> list[Row]:
    """The whole model first where its accuracy is known, then each strategy."""
    whole = accuracy.get(UNPRUNED)
    nothing = 0.0 if held_out else None
    first = [] if whole is None else [Row(UNPRUNED, 1.0, 0.0, nothing, whole, 1.0)]
    return first + [
        Row(
            name,
            retain,
            divergence,
            held_out.get(name),
            accuracy.get(name),
            _kept(accuracy.get(name), whole),
        )
        for name, divergence in divergences.items()
    ]


def baselines(comparison: Sequence[Row]) -> dict[str, float]:
    """Divergence of the plain strategies among the rows."""
    return {row.name: row.divergence for row in comparison if row.name not in (FOUND, UNPRUNED)}


def rendered(comparison: Sequence[Row]) -> Table:
    """The comparison as people read it."""
    labelled = any(row.accuracy is not None for row in comparison)
    rescored = any(row.held_out is not None for row in comparison)
    columns = ["strategy", "tokens kept", "divergence"]
    columns += rescored * ["held out"] + labelled * ["accuracy", "accuracy kept"]
    return table(columns, [_cells(row, rescored, labelled) for row in comparison])


def explained(comparison: Sequence[Row], metric: str, samples: int) -> list[str]:
    """What the figures of `rendered` mean, a line each.

    Args:
        comparison: the rows.
        metric: name of the divergence.
        samples: how many the search saw.
    """
    lines = [
        "tokens kept: share of the visual tokens, mean over decoder layers",
        f"divergence: {metric}, mean over the {samples} samples of the search; 0 changes nothing, "
        "lower is better",
    ]
    if any(row.held_out is not None for row in comparison):
        lines.append("held out: the same over samples that no trial saw")
    if any(row.accuracy is not None for row in comparison):
        lines.append(
            "accuracy: exact match on held-out questions; accuracy kept: over the whole model's"
        )
    return lines


def _cells(row: Row, rescored: bool, labelled: bool) -> list[str]:
    cells = [row.name, f"{row.retained:.1%}", f"{row.divergence:.5f}"]
    if rescored:
        cells.append("" if row.held_out is None else f"{row.held_out:.5f}")
    measured = [row.accuracy, row.accuracy_kept] if labelled else []
    return cells + ["" if share is None else f"{share:.1%}" for share in measured]


def _kept(accuracy: float | None, whole: float | None) -> float | None:
    return accuracy / whole if accuracy is not None and whole else None
