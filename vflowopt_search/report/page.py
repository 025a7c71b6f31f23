"""A study as one HTML page that needs no network: summary, figures, light and dark."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

import plotly.graph_objects as go
from optuna import Study
from plotly.offline import get_plotlyjs

from vflowopt_search import trials
from vflowopt_search.report import figures, frames
from vflowopt_search.trials import best_full, outcome_of, value_of

_TEMPLATE = Path(__file__).with_name("page.html")


@dataclass(frozen=True)
class Section:
    """One figure of the page, or the sentence that stands in its place."""

    key: str
    title: str
    text: str
    figure: go.Figure | None
    instead: str


def write_report(
    study: Study,
    path: str | Path,
    *,
    baselines: Mapping[str, float] | None = None,
    title: str | None = None,
    summary: Mapping[str, str] | None = None,
) -> None:
    """Write the page of a study, whole or not at all.

    Args:
        study: any study of ours, also an empty one.
        path: the HTML file.
        baselines: mean divergence of plain strategies at the same budget, by name.
        title: heading; the study's name when None.
        summary: rows to put before those that the study itself can tell.

    Raises:
        OSError: the file cannot be written.
    """
    page = Template(_TEMPLATE.read_text("utf-8")).substitute(
        title=escape(title or study.study_name),
        summary="\n".join(_table_row(*row) for row in _summary(study, summary or {}).items()),
        sections="\n".join(map(_html, sections(study, baselines))),
        plotly=get_plotlyjs(),
    )
    beside = Path(path).with_name(f".{Path(path).name}.tmp")
    beside.write_text(page, encoding="utf-8")
    beside.replace(path)


def sections(study: Study, baselines: Mapping[str, float] | None = None) -> Iterator[Section]:
    """The figures of the page, in its order."""
    yield _history(study)
    yield _comparison(study, baselines)
    yield _staircase(study)
    yield _importance(study)
    yield _heatmap(study)


def _history(study: Study) -> Section:
    record = frames.history(study)
    return Section(
        "history",
        "How the search went",
        "Mean divergence from the unpruned model over the calibration samples; lower is better. "
        "Racing stops a trial once it is surely worse than the best.",
        figures.history_figure(record) if record.trial else None,
        "No trial has been measured yet.",
    )


def _comparison(study: Study, baselines: Mapping[str, float] | None) -> Section:
    record = frames.comparison(study, baselines)
    return Section(
        "comparison",
        "Best against plain strategies",
        "All at the same budget, on the same samples; the shorter, the better.",
        figures.comparison_figure(record) if len(record.name) > 1 else None,
        "There is nothing to compare the best strategy with.",
    )


def _staircase(study: Study) -> Section:
    record = frames.staircase(study)
    return Section(
        "staircase",
        "Tokens alive, layer by layer",
        "Share of the visual tokens that each decoder layer still works on; the mean over the "
        "layers is the budget.",
        figures.staircase_figure(record) if record.alive else None,
        "No strategy has been measured yet.",
    )


def _importance(study: Study) -> Section:
    record = frames.parameter_importance(study)
    return Section(
        "importance",
        "What mattered",
        "How much each parameter decides whether a trial is among the best (PED-ANOVA).",
        figures.importance_figure(record) if record.parameter else None,
        f"Fewer than {frames.MIN_TRIALS_FOR_IMPORTANCE} trials are too few to say.",
    )


def _heatmap(study: Study) -> Section:
    record = frames.sample_heatmap(study)
    return Section(
        "heatmap",
        "Which samples are hard",
        "Divergence of each calibration sample under the best fully measured trials.",
        figures.heatmap_figure(record) if record.trial else None,
        "No trial has been measured on all samples yet.",
    )


def _summary(study: Study, given: Mapping[str, str]) -> dict[str, str]:
    ended = trials.finished(study)
    outcomes = [outcome_of(trial) for trial in ended]
    best = best_full(ended)
    return {
        **given,
        "best divergence": "none yet" if best is None else f"{value_of(best):.5g}",
        "best trial": "none yet" if best is None else str(best.number),
        "trials": f"{trials.num_counted(ended)}, of which {outcomes.count('stopped')} stopped "
        f"early and {outcomes.count('failed')} failed",
        "samples measured": str(sum(t.user_attrs.get(trials.SAMPLES_SEEN, 0) for t in ended)),
    }


def _table_row(name: str, value: str) -> str:
    return f"<tr><th scope='row'>{escape(name)}</th><td>{escape(value)}</td></tr>"


def _html(section: Section) -> str:
    head = f"<h2>{escape(section.title)}</h2>\n<p>{escape(section.text)}</p>"
    if section.figure is None:
        return f"<section>{head}\n<p class='nothing'>{escape(section.instead)}</p></section>"
    # plotly escapes `<`, so that no name in it can end the script element.
    data = section.figure.to_json()
    return (
        f"<section>{head}\n<div class='plot' id='{section.key}'></div>\n"
        f"<script type='application/json' id='{section.key}-data'>{data}</script></section>"
    )
