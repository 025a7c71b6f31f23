"""A validation as people read it: a line per divergence, a column per number of samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from vflowopt_search.cli.console import interval, table

if TYPE_CHECKING:
    from vflowopt_search.evaluate.prediction import Prediction
    from vflowopt_search.evaluate.validation import Validation

ENOUGH_STRATEGIES, ENOUGH_SAMPLES, ENOUGH_QUESTIONS = 20, 16, 100
"""With fewer, an interval of a rank correlation says next to nothing."""


CORRELATIONS = (
    "Rank correlation of divergence (sign turned) and accuracy over the strategies, 1 being the "
    "same order; below it its 95 % interval (other strategies, samples and questions drawn)"
)
PICKS = (
    "Accuracy of the strategy that each would pick, over that of the best of them (mean over draws "
    "of samples)"
)


def parts(validation: Validation, about: Mapping[str, Any]) -> Iterator[Table | Text]:
    """All that is printed of a validation, in order; no table where there is nothing to predict.

    Args:
        validation: the figures.
        about: on what they were measured, as `validation.json` says it.
    """
    for name, words in (("calibration", "calibration samples"), ("data", "questions")):
        if note := about[name]["note"]:
            yield Text(f"{words}: {note}")
    yield Text(sentence(validation))
    for warning in filter(None, (caution(validation), about["data"]["caution"])):
        yield Text(warning, style="yellow")
    if validation.predictions:
        yield Text(f"\n{CORRELATIONS}\n")
        yield correlations(validation)
        yield Text(f"\n{PICKS}\n")
        yield picks(validation)


def sentence(validation: Validation) -> str:
    """What was measured, for people."""
    origins = [point.origin for point in validation.points]
    told = {"along": "along the study's divergences", "random": "of its trials at random"}
    told |= {"fresh": "drawn fresh from the space"}
    parts = [f"{origins.count(o)} {words}" for o, words in told.items() if o in origins]
    shares = sorted(point.kept for point in validation.points if point.kept is not None)
    kept = (
        f", of which the strategies keep {shares[0]:.1%} / {shares[len(shares) // 2]:.1%} / "
        f"{shares[-1]:.1%} (worst / median / best)"
        if shares
        else ""
    )
    return (
        f"{len(origins)} strategies ({', '.join(parts)}); {validation.calibration_samples} "
        f"calibration samples; {validation.questions} questions about other images, "
        f"{validation.metric}: unpruned {validation.unpruned:.1%}{kept}"
    )


def correlations(validation: Validation) -> Table:
    """Rank correlation, and its interval below."""
    return _table(validation, "correlation", _correlation)


def picks(validation: Validation) -> Table:
    """Accuracy of the strategy picked, relative to the best."""
    return _table(validation, "pick over best", lambda one: f"{one.picked.value:.1%}")


def caution(validation: Validation) -> str:
    """One line where so little was measured that no order of divergences shows; else empty."""
    if not validation.unpruned:
        return (
            "caution: the unpruned model got every answer wrong, so that there is no accuracy to "
            "predict; try another --metric or an --instruction"
        )
    if not validation.predictions:
        return (
            "caution: all strategies got as many answers right, so that there is no order to "
            "predict; ask for more with --strategies or --questions"
        )
    few = [
        (len(validation.points), ENOUGH_STRATEGIES, "strategies"),
        (validation.calibration_samples, ENOUGH_SAMPLES, "calibration samples"),
        (validation.questions, ENOUGH_QUESTIONS, "questions"),
    ]
    lacking = [f"{count} {what}" for count, enough, what in few if count < enough]
    if not lacking:
        return ""
    return (
        f"caution: of only {', '.join(lacking)} the intervals are wide, and which divergence is "
        "better can hardly be told; ask for more with --strategies, --samples or --questions"
    )


def _correlation(one: Prediction) -> str:
    each = one.correlation
    return f"{each.value:.2f}\n{interval(each.low, each.high, '.2f')}"


def _table(validation: Validation, figure: str, cell: Callable[[Prediction], str]) -> Table:
    sizes = sorted({one.samples for one in validation.predictions})
    found = {(one.metric, one.samples): cell(one) for one in validation.predictions}
    metrics = list(dict.fromkeys(one.metric for one in validation.predictions))
    rows = [[name, *(found[name, size] for size in sizes)] for name in metrics]
    return table(["divergence", *(f"{figure}\n{size} samples" for size in sizes)], rows)
