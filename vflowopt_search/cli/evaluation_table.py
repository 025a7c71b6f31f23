"""An evaluation as people read it: one line per strategy, and one per kind of sample."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from vflowopt_search.cli.console import table

if TYPE_CHECKING:
    from vflowopt_search.evaluate.evaluation import Evaluation, Group, Result
    from vflowopt_search.evaluate.statistics import Interval

MANY = 40
_COLUMNS = (
    "strategy",
    "tokens kept",
    "accuracy",
    "accuracy kept",
    "95 %",
    "p",
    "same answer",
    "speed",
)


def compared(evaluation: Evaluation) -> Table:
    """The whole model first, then every strategy."""
    whole = [
        "unpruned",
        "100.0%",
        f"{evaluation.unpruned:.1%}",
        "100.0%",
        "",
        "",
        "100.0%",
        "1.00x",
    ]
    return table(_COLUMNS, [whole, *(_row(result) for result in evaluation.results)])


def by_group(evaluation: Evaluation) -> Table:
    """Accuracy of every kind of sample; the one that a strategy hurts most has a star.

    Of very many kinds, those are shown of which the first strategy keeps least.
    """
    first = evaluation.results[0].groups
    shown = list(range(len(first)))
    if len(first) > MANY:
        shown = sorted(shown, key=lambda number: _share_kept(first[number]))[:MANY]
    rows = [
        [
            escape(first[number].name),
            str(first[number].samples),
            f"{first[number].unpruned:.1%}",
            *(_group_cell(result, result.groups[number]) for result in evaluation.results),
        ]
        for number in shown
    ]
    names = [escape(result.name) for result in evaluation.results]
    return table(["group", "samples", "unpruned", *names], rows)


def p_text(p_value: float) -> str:
    """`0.031`, or a bound of what is small."""
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"


def interval_text(interval: Interval | None) -> str:
    """`93.1 to 97.2 %`; empty without one."""
    return "" if interval is None else f"{interval.low:.1%} to {interval.high:.1%}"


def _row(result: Result) -> list[str]:
    return [
        escape(result.name),
        _percent(result.retained),
        f"{result.accuracy:.1%}",
        _percent(result.kept.value if result.kept else None),
        interval_text(result.kept),
        p_text(result.test.p_value),
        f"{result.agreement:.1%}",
        "" if result.speed is None else f"{result.speed:.2f}x",
    ]


def _share_kept(group: Group) -> float:
    return 1.0 if group.kept is None else group.kept.value


def _group_cell(result: Result, group: Group) -> str:
    return f"{group.accuracy:.1%}{'*' if group.name == result.worst_group else ''}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"
