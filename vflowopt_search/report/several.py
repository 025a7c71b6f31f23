"""Several runs beside each other: records that figures draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from vflowopt_search.report.frames import Staircase, history, staircase
from vflowopt_search.report.runs import Run
from vflowopt_search.report.words import FOUND
from vflowopt_search.trials import best_full, value_of

COMPARED = ("metric", "config_sha256", "weights_sha256")
"""What two studies must have in common for their divergences to be compared."""
HELD_OUT = f"{FOUND}, held-out samples"
OTHER_SAMPLES = (
    "The runs measured different calibration samples, so that small differences mean nothing."
)


@dataclass(frozen=True)
class BudgetCurve:
    """Divergence against budget over several runs; empty where they cannot be compared.

    Attributes:
        retain: budget of each point, by series; series are `FOUND`, `HELD_OUT`, baselines.
        divergence: its divergence.
        run: name of its run.
        refusal: why there is nothing to compare.
        remark: what to keep in mind.
    """

    retain: dict[str, list[float]]
    divergence: dict[str, list[float]]
    run: dict[str, list[str]]
    refusal: str = ""
    remark: str = ""

    def medians(self, series: str) -> tuple[list[float], list[float]]:
        """The budgets of a series in order, and the median over the runs at each."""
        points: dict[float, list[float]] = {}
        for budget, value in zip(self.retain[series], self.divergence[series], strict=True):
            points.setdefault(budget, []).append(value)
        budgets = sorted(points)
        return budgets, [median(points[budget]) for budget in budgets]


@dataclass(frozen=True)
class Progress:
    """The lowest divergence so far of several runs, by the name of the run."""

    trial: dict[str, list[int]]
    best: dict[str, list[float]]


def budget_curve(runs: Sequence[Run]) -> BudgetCurve:
    """What each run found, and its baselines, by the budget that was asked for."""
    known = [(run, run.retain, best_full(run.study.get_trials(deepcopy=False))) for run in runs]
    if differing := [field for field in COMPARED if _differ(runs, field)]:
        refusal = (
            f"These runs differ in {', '.join(differing)}: their divergences measure different "
            f"things and are not drawn together."
        )
        return BudgetCurve({}, {}, {}, refusal)
    points: dict[str, list[tuple[float, float, str]]] = {}
    for run, retain, best in known:
        if retain is None or best is None:
            continue
        held_out = _held_out(run)
        values = {FOUND: value_of(best), HELD_OUT: held_out, **run.baselines}
        for series, value in values.items():
            if value is not None:
                points.setdefault(series, []).append((retain, value, run.name))
    columns = {series: list(zip(*rows, strict=True)) for series, rows in points.items()}
    return BudgetCurve(
        retain={series: list(column[0]) for series, column in columns.items()},
        divergence={series: list(column[1]) for series, column in columns.items()},
        run={series: list(column[2]) for series, column in columns.items()},
        remark=OTHER_SAMPLES if _differ(runs, "calibration_sha256") else "",
    )


def progress(runs: Sequence[Run]) -> Progress:
    """Of each run that has measured something."""
    records = {name: history(run.study) for name, run in named(runs).items()}
    known = {name: record for name, record in records.items() if record.trial}
    return Progress(
        trial={name: record.trial for name, record in known.items()},
        best={name: record.best for name, record in known.items()},
    )


def staircases(runs: Sequence[Run]) -> Staircase:
    """The strategy that each run found; those of other depths than the first are left out."""
    alive = {
        name: staircase(run.study).alive[FOUND]
        for name, run in named(runs).items()
        if best_full(run.study.get_trials(deepcopy=False)) is not None
    }
    depth = len(next(iter(alive.values()), []))
    return Staircase(list(range(depth)), {n: a for n, a in alive.items() if len(a) == depth})


def named(runs: Sequence[Run]) -> dict[str, Run]:
    """Runs by name and budget; a number tells apart those that share both."""
    found: dict[str, Run] = {}
    for run in runs:
        name = run.name if run.retain is None else f"{run.name} ({run.retain:.1%})"
        again = sum(other == name or other.startswith(f"{name} #") for other in found)
        found[f"{name} #{again + 1}" if again else name] = run
    return found


def _differ(runs: Sequence[Run], field: str) -> bool:
    """Whether runs are known to differ; what one of them does not tell makes no difference."""
    return len({run.context[field] for run in runs if field in run.context}) > 1


def _held_out(run: Run) -> float | None:
    origin = run.strategy.provenance if run.strategy else None
    return origin.objective.held_out if origin and origin.objective else None
