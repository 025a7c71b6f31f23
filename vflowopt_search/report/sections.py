"""The parts of a report about one run: words, tables, figures; what stands in place of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from vflowopt_search.report import figures, frames, html, landscape, landscape_figures
from vflowopt_search.report.facts import FOUND, Result, facts, results
from vflowopt_search.report.overlay_html import overlay_cards, thumbnails
from vflowopt_search.report.runs import Run
from vflowopt_search.report.words import ranking, stages

TABS = {
    "compare": "Compare",
    "summary": "Summary",
    "search": "Search",
    "strategy": "Strategy",
    "parameters": "Parameters",
    "samples": "Samples",
    "overlays": "Overlays",
}
"""Key of each tab and its name, in the order of the page."""


@dataclass(frozen=True)
class Section:
    """One part of a tab.

    Attributes:
        key: of its figures; unique in a run.
        tab: one of `TABS`.
        title: heading.
        text: what is to be seen.
        figures: plotly figures, side by side where there are several.
        before: HTML that stands above the figures.
        after: HTML that stands below them.
        instead: the sentence that stands in place of everything where there is nothing.
    """

    key: str
    tab: str
    title: str
    text: str
    figures: Sequence[go.Figure] = ()
    before: str = ""
    after: str = ""
    instead: str = ""

    @property
    def empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.figures or self.before or self.after)


def sections(run: Run, overlay_bytes: int) -> Iterator[Section]:
    """The parts about one run, in the order of the page.

    Args:
        run: any run of ours, also an empty one.
        overlay_bytes: how much the overlays may take.
    """
    importance = frames.parameter_importance(run.study)
    yield _facts(run)
    yield _results(run)
    yield _history(run)
    yield _staircase(run)
    yield _stages(run)
    yield _importance(importance)
    yield _parallel(run, importance.parameter)
    yield _slices(run, importance.parameter)
    yield _heatmap(run)
    yield _overlays(run, overlay_bytes)


def _facts(run: Run) -> Section:
    command = f"<p class=label>Make it again:</p>{html.code(run.command)}" if run.command else ""
    return Section(
        key="facts",
        tab="summary",
        title="What was searched",
        text="",
        before=html.tiles(_headline(run)) + html.facts(facts(run).items()),
        after=command,
    )


def _headline(run: Run) -> list[tuple[str, str, str]]:
    """The numbers in large: value, what it is, a remark."""
    rows = {result.name: result for result in results(run)}
    found = rows.get(FOUND)
    if found is None or found.divergence is None:
        return []
    tiles = [(f"{found.divergence:.4g}", "divergence", "0 is the whole model")]
    if run.retain is not None:
        tiles.insert(0, (f"{run.retain:.1%}", "visual tokens kept", "mean over decoder layers"))
    if found.held_out is not None:
        tiles.append((f"{found.held_out:.4g}", "on the held-out half", "not seen by the search"))
    if found.accuracy_kept is not None:
        remark = "" if found.accuracy is None else f"{found.accuracy:.1%} of answers right"
        if found.accuracy_range is not None:
            low, high = found.accuracy_range
            remark = f"95 % interval {low:.1%} to {high:.1%}"
        tiles.append((f"{found.accuracy_kept:.1%}", "accuracy kept", remark))
    if found.speedup is not None:
        tiles.append((f"{found.speedup:.2f} x", "sooner to the first token", ""))
    if (plain := [value for name, value in run.baselines.items()]) and found.divergence > 0:
        ratio = min(plain) / found.divergence
        tiles.append((f"{ratio:.1f} x", "closer than the best baseline", "at the same budget"))
    return tiles


def _results(run: Run) -> Section:
    record = frames.comparison(run.study, run.baselines)
    rows = results(run)
    return Section(
        key="comparison",
        tab="summary",
        title="Beside plain strategies",
        text="All at the same budget, on the same samples. Divergence is how far the pruned model "
        "is from the whole one: lower is better.",
        figures=[figures.comparison_figure(record)] if len(record.name) > 1 else [],
        before=html.table(*_columns(rows)) if len(rows) > 1 else "",
        instead="There is nothing to compare the best strategy with yet.",
    )


def _columns(rows: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Head and cells of the table of results, without columns that nothing fills."""
    columns = {
        "strategy": ["best (found)" if row.name == FOUND else row.name for row in rows],
        "tokens kept": [html.percent(row.retained) for row in rows],
        "divergence": [html.number(row.divergence) for row in rows],
        "held out": [html.number(row.held_out) for row in rows],
        "accuracy": [html.percent(row.accuracy) for row in rows],
        "accuracy kept": [html.percent(row.accuracy_kept) for row in rows],
        "95 % interval": [html.span(row.accuracy_range) for row in rows],
        "speed-up": ["" if row.speedup is None else f"{row.speedup:.2f} x" for row in rows],
        "KV cache": [html.size(row.kv_bytes) for row in rows],
    }
    return html.filled(columns)


def _history(run: Run) -> Section:
    record = frames.history(run.study, run.baselines)
    return Section(
        key="history",
        tab="search",
        title="How the search went",
        text="Mean divergence of each trial from the whole model over the calibration samples; "
        "lower is better. Racing stops a trial once it is surely worse than the best.",
        figures=[figures.history_figure(record)] if record.trial else [],
        instead="No trial has been measured yet.",
    )


def _staircase(run: Run) -> Section:
    record = frames.staircase(run.study, run.baselines)
    return Section(
        key="staircase",
        tab="strategy",
        title="Tokens alive, layer by layer",
        text="Share of the visual tokens that each decoder layer still works on; the mean over "
        "the layers is the budget, the same for every line.",
        figures=[figures.staircase_figure(record)] if record.alive else [],
        instead="No strategy has been measured yet.",
    )


def _stages(run: Run) -> Section:
    strategy = run.strategy
    head = ["decoder layers", "keep ratio", "alive", "ranked by"]
    return Section(
        key="stages",
        tab="strategy",
        title="The strategy in words",
        text="What the strategy file says. A keep ratio is relative to the tokens alive before.",
        before=""
        if strategy is None
        else html.table(head, stages(strategy)) + html.facts(ranking(strategy)),
        instead="No trial has been measured on all samples yet.",
    )


def _importance(record: frames.ParameterImportance) -> Section:
    return Section(
        key="importance",
        tab="parameters",
        title="What mattered",
        text="How much each parameter decides whether a trial is among the best (PED-ANOVA).",
        figures=[figures.importance_figure(record)] if record.parameter else [],
        instead=f"Fewer than {frames.MIN_TRIALS_FOR_IMPORTANCE} trials are too few to say.",
    )


def _parallel(run: Run, order: Sequence[str]) -> Section:
    record = landscape.parallel_coordinates(run.study, order)
    return Section(
        key="parallel",
        tab="parameters",
        title="All parameters at once",
        text="One line for each trial, from the first parameter to the last. Where the orange "
        "lines run together, the best trials agree. A name in the legend switches its lines.",
        figures=[landscape_figures.parallel_figure(record)] if len(record.trial) > 1 else [],
        instead="Fewer than two trials have been measured yet.",
    )


def _slices(run: Run, order: Sequence[str]) -> Section:
    records = landscape.slices(run.study, order)
    return Section(
        key="slice",
        tab="parameters",
        title="One parameter at a time",
        text="Divergence of each trial against the value of one parameter; the diamond is the "
        "best trial.",
        figures=[landscape_figures.slice_figure(record) for record in records],
        instead="No parameter has been tried with two values yet.",
    )


def _heatmap(run: Run) -> Section:
    record = frames.sample_heatmap(run.study)
    return Section(
        key="heatmap",
        tab="samples",
        title="Which samples are hard",
        text="Divergence of each calibration sample under the best fully measured trials. A "
        "column that is bright throughout is a sample that no strategy handles at this budget.",
        figures=[figures.heatmap_figure(record)] if record.trial else [],
        after=thumbnails(run, record),
        instead="No trial has been measured on all samples yet.",
    )


def _overlays(run: Run, allowance: int) -> Section:
    return Section(
        key="overlays",
        tab="overlays",
        title="What is left of an image",
        text="What the best strategy does to the samples of highest, middle and lowest "
        "divergence: the tokens that each stage leaves alive are bright, those that it merges "
        "into one have one colour and an outline where the merged token stands.",
        before=overlay_cards(run, allowance),
        instead="None were recorded. A search records them at its end; of this run, "
        "vflowopt-search report RUN --model MODEL --calibration DATA records them now.",
    )
