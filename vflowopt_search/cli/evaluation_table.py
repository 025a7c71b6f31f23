"""An evaluation as people read it: one line per strategy, and one per kind of sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from vflowopt_search.cli.console import interval, legend, table

if TYPE_CHECKING:
    from vflowopt_search.evaluate.evaluation import Evaluation, Group, Result
    from vflowopt_search.evaluate.statistics import Interval

MANY = 40
_COLUMNS = (
    "strategy",
    "tokens\nkept",
    "accuracy",
    "accuracy\nkept",
    "95 % interval\nof accuracy kept",
    "p",
    "same\nanswers",
    "speed without\nvision encoder",
)


def parts(evaluation: Evaluation, about: Mapping[str, Any]) -> Iterator[Table | Text]:
    """All that is printed of an evaluation, in order.

    Args:
        evaluation: the figures.
        about: on what and how they were measured, as `evaluation.json` says it.
    """
    data = about["data"]
    images = "" if evaluation.images == evaluation.samples else f" about {evaluation.images} images"
    yield Text(f"{data['name']}: {evaluation.samples} samples{images}, {evaluation.metric}")
    if data["note"]:
        yield Text(data["note"])
    if data["caution"]:
        yield Text(data["caution"], style="yellow")
    for name, why in about["left_out"].items():
        yield Text(f"baseline:{name} is left out: {why}", style="yellow")
    yield compared(evaluation)
    yield legend(explained(evaluation))
    if any(result.groups for result in evaluation.results):
        yield Text("")
        yield by_group(evaluation)
        yield legend(groups_explained(evaluation))


def compared(evaluation: Evaluation) -> Table:
    """The unpruned model first, then every strategy."""
    whole = [
        "unpruned",
        "100.0%",
        f"{evaluation.unpruned:.1%}",
        "100.0%" if evaluation.unpruned else "",
        "",
        "",
        "100.0%",
        _speed(1.0),
    ]
    return table(_COLUMNS, [whole, *(_row(result) for result in evaluation.results)])


def explained(evaluation: Evaluation) -> list[str]:
    """What the figures of `compared` mean, a line for each that needs words."""
    results = evaluation.results
    tests = ", ".join(sorted({result.test.name for result in results}))
    lines = [
        "accuracy kept: relative to the unpruned model, with a 95 % bootstrap interval over images",
        f"p: chance of a difference at least as large if pruning changed nothing ({tests})",
        "speed: answers per second relative to the unpruned model, without the vision encoder; "
        "timed once, in passing: `bench` measures it properly, with the encoder",
    ]
    if draws := [r.accuracy for r in results if r.name.partition(":")[0] == "random"]:
        lines.append(_random_explained(draws))
    if any(result.kept is not None and result.kept.high > 1 for result in results):
        lines.append(
            "above 100 %: in some bootstrap resamples the pruned model scores higher than the "
            "unpruned one"
        )
    if not evaluation.unpruned:
        lines.append(
            "accuracy kept is empty: the unpruned model got every answer wrong; try another "
            "--metric or an --instruction"
        )
    return lines


def caution(searched_on: Mapping[str, int], samples: int) -> str:
    """What to say where a strategy is measured on images that it was searched on.

    Args:
        searched_on: by strategy, how many samples show one.
        samples: how many there are.
    """
    return "; ".join(
        f"{count} of these {samples} samples show{'s' if count == 1 else ''} images that strategy "
        f"{name} was searched on: its accuracy there may flatter it"
        for name, count in searched_on.items()
        if count
    )


def by_group(evaluation: Evaluation) -> Table:
    """Accuracy on every kind of sample; the kind that a strategy hurts most has a star.

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
    return table(["group", "number of\nsamples", "accuracy\nunpruned", *names], rows)


def groups_explained(evaluation: Evaluation) -> list[str]:
    """What is in `by_group`, and what its mark means where there is one."""
    from vflowopt_search.evaluate.evaluation import FEW

    results = evaluation.results
    lines = ["under each strategy: accuracy on the samples of the group"]
    if any(result.worst_group is not None for result in results):
        lines.append(
            f"* the group that keeps least of its accuracy, among groups of {FEW} or more samples"
        )
    elif len(results[0].groups) > 1:
        lines.append(
            f"no group is marked as the worst: none of {FEW} samples or more has an accuracy to "
            "keep"
        )
    if len(results[0].groups) > MANY:
        lines.append(
            f"{MANY} of {len(results[0].groups)} groups: those of which {results[0].name} keeps "
            "least; all are in the file"
        )
    return lines


def p_text(p_value: float) -> str:
    """`0.031`, or a bound of what is small."""
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"


def interval_text(kept: Interval | None) -> str:
    """`93.1% to 97.2%`; empty without one."""
    return "" if kept is None else interval(kept.low, kept.high, ".1%")


def _random_explained(accuracies: list[float]) -> str:
    """How to ask for more draws; of several, how far luck takes them."""
    same = "the same for all images with as many tokens"
    if len(accuracies) == 1:
        return f"random: one draw, {same}; baseline:random:1-4 asks for four others"
    spread = interval(min(accuracies), max(accuracies), ".1%")
    mean = sum(accuracies) / len(accuracies)
    more = "; baseline:random:1-8 asks for eight" * (len(accuracies) < 8)
    return f"random: {len(accuracies)} draws, each {same}; accuracy {spread}, mean {mean:.1%}{more}"


def _row(result: Result) -> list[str]:
    return [
        escape(result.name),
        _percent(result.retained),
        f"{result.accuracy:.1%}",
        _percent(result.kept.value if result.kept else None),
        interval_text(result.kept),
        p_text(result.test.p_value),
        f"{result.agreement:.1%}",
        _speed(result.speed),
    ]


def _speed(times: float | None) -> str:
    """`1.2x` or `9x`: another run differs in the digits that are left out."""
    return "" if times is None else f"{times:.{int(times < 3)}f}x"


def _share_kept(group: Group) -> float:
    return 1.0 if group.kept is None else group.kept.value


def _group_cell(result: Result, group: Group) -> str:
    return f"{'*' if group.name == result.worst_group else ''}{group.accuracy:.1%}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"
