"""The found strategy beside baselines at the same budget, and beside the unpruned model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.table import Table

from vflowopt_search.cli.console import table
from vflowopt_search.report.caution import beaten
from vflowopt_search.report.words import FOUND

if TYPE_CHECKING:
    from vflowopt_search.calibration.samples import Sample
    from vflowopt_search.evaluate.ledger import Ledger
    from vflowopt_search.race import MeasuresStrategies
    from vflowopt_search.strategy import Strategy

UNPRUNED = "unpruned"
COLUMNS = ("divergence", "held_out", "accuracy")
"""What is measured of each strategy."""
OnStep = Callable[[int, int], None]


@dataclass(frozen=True)
class Row:
    """One line of the comparison.

    Attributes:
        name: of the strategy.
        retained: share of visual tokens alive, averaged over decoder layers.
        divergence: mean over all calibration samples, lower is better; None where not measured.
        held_out: mean divergence over samples that no trial saw; None where not measured.
        accuracy: share of held-out questions answered right; None where not measured.
        accuracy_kept: accuracy relative to the unpruned model's; None where not measured.
    """

    name: str
    retained: float
    divergence: float | None = None
    held_out: float | None = None
    accuracy: float | None = None
    accuracy_kept: float | None = None


@dataclass(frozen=True)
class Columns:
    """What was measured so far, by the name of the strategy; see `Row`."""

    divergence: dict[str, float] = field(default_factory=dict)
    held_out: dict[str, float] = field(default_factory=dict)
    accuracy: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Columns:
        """What rows say; the unpruned model is no strategy, but has an accuracy."""
        columns = cls()
        for row in rows:
            for name, column in vars(columns).items():
                value = getattr(row, name)
                if value is not None and (row.name != UNPRUNED or name == "accuracy"):
                    column[row.name] = value
        return columns

    def rows(self, retain: float, names: Iterable[str]) -> tuple[Row, ...]:
        """The unpruned model first where its accuracy is known, then each strategy."""
        whole = self.accuracy.get(UNPRUNED)
        nothing = 0.0 if self.held_out else None
        first = () if whole is None else (Row(UNPRUNED, 1.0, 0.0, nothing, whole, 1.0),)
        return first + tuple(self._row(retain, name, whole) for name in names)

    def _row(self, retain: float, name: str, whole: float | None) -> Row:
        accuracy = self.accuracy.get(name)
        kept = accuracy / whole if accuracy is not None and whole else None
        divergence, held_out = self.divergence.get(name), self.held_out.get(name)
        return Row(name, retain, divergence, held_out, accuracy, kept)


@dataclass(frozen=True)
class Comparison:
    """The rows, as far as they are measured.

    Attributes:
        rows: the unpruned model where its accuracy is known, then each strategy.
        wanted: columns that all rows will have, and `overlays` where they will be recorded.
        complete: whether all of that is there, for the best of all trials that were asked for.
    """

    rows: tuple[Row, ...] = ()
    wanted: tuple[str, ...] = ()
    complete: bool = False

    @property
    def filled(self) -> bool:
        """Whether each row has a value in each of the columns that are wanted."""
        columns = [column for column in COLUMNS if column in self.wanted]
        return all(getattr(row, column) is not None for row in self.rows for column in columns)

    def has(self, wanted: Iterable[str]) -> bool:
        """Whether all of this is there."""
        return self.complete and set(wanted) <= set(self.wanted)


def mean_divergences(
    objective: MeasuresStrategies, strategies: Mapping[str, Strategy], on_step: OnStep
) -> Iterator[tuple[str, float]]:
    """Name and mean divergence of each strategy over all calibration samples, when it is there."""
    from vflowopt_search.reference.encoder import shifted
    from vflowopt_search.rescoring import mean_divergence

    for number, (name, strategy) in enumerate(strategies.items()):
        yield name, mean_divergence(objective, strategy, shifted(on_step, number, len(strategies)))


def held_out_of(best: Strategy) -> float | None:
    """Mean divergence on samples that no trial saw, as a found strategy's file states it."""
    origin = best.provenance
    return None if origin is None or origin.objective is None else origin.objective.held_out


def accuracies(
    loaded: tuple[Any, Any],
    samples: Sequence[Sample],
    strategies: Mapping[str, Strategy],
    ledger: Ledger,
    on_step: OnStep,
) -> dict[str, float]:
    """Share of right answers with each strategy, and of the unpruned model as `unpruned`."""
    from vflowopt_search.evaluate.answers import Asking
    from vflowopt_search.evaluate.evaluation import evaluate

    measured = evaluate(Asking(*loaded), samples, strategies, ledger=ledger, progress=on_step)
    kept = {result.name: result.accuracy for result in measured.results}
    return {UNPRUNED: measured.unpruned, **kept}


def baselines(comparison: Sequence[Row]) -> dict[str, float]:
    """Divergence of the baselines among the rows."""
    return {
        row.name: row.divergence
        for row in comparison
        if row.name not in (FOUND, UNPRUNED) and row.divergence is not None
    }


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
    if any(row.name == "random" for row in comparison):
        lines.append(
            "random: one draw, the same for all images with as many tokens; `evaluate "
            "baseline:random:1-4` answers by four others"
        )
    if any(row.accuracy is not None for row in comparison):
        lines.append(
            "accuracy: exact match on held-out questions; accuracy kept: over the unpruned model's"
        )
    return lines


def caution(comparison: Sequence[Row]) -> str:
    """What to say where a baseline is closer to the unpruned model than the strategy found."""
    sentence = beaten(comparison)
    return f"caution: {sentence}" if sentence else ""


def _cells(row: Row, rescored: bool, labelled: bool) -> list[str]:
    cells = [row.name, f"{row.retained:.1%}"]
    cells.append("" if row.divergence is None else f"{row.divergence:.5f}")
    if rescored:
        cells.append("" if row.held_out is None else f"{row.held_out:.5f}")
    measured = [row.accuracy, row.accuracy_kept] if labelled else []
    return cells + ["" if share is None else f"{share:.1%}" for share in measured]
