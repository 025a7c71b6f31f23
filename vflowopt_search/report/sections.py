"""The parts of a report about one run: words, tables, figures; what stands in place of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vflowopt_search.report import figures, frames, html, landscape, landscape_figures
from vflowopt_search.report.gaps import END, OVERLAYS, SAMPLES, Gap, gaps
from vflowopt_search.report.overlay_html import overlay_cards, thumbnails
from vflowopt_search.report.runs import Run
from vflowopt_search.report.section import Section
from vflowopt_search.report.summary_sections import summary
from vflowopt_search.report.words import ranking, stages


def sections(run: Run, overlay_bytes: int) -> Iterator[Section]:
    """The parts about one run, in the order of the page.

    Args:
        run: any run of ours, also an empty one.
        overlay_bytes: how much the overlays may take.
    """
    importance, missing = frames.parameter_importance(run.study), gaps(run)
    yield from summary(run, missing)
    yield _history(run)
    yield _staircase(run)
    yield _stages(run)
    yield _importance(importance)
    yield _parallel(run, importance.parameter)
    yield _slices(run, importance.parameter)
    yield _heatmap(run, missing.get(SAMPLES))
    yield _overlays(run, overlay_bytes, missing.get(OVERLAYS) or missing.get(END))


def _history(run: Run) -> Section:
    record = frames.history(run.study, run.baselines)
    return Section(
        key="history",
        tab="search",
        title="How the search went",
        text="Mean divergence of each trial from the whole model over the calibration samples; "
        "lower is better. Racing stops a trial once it is surely worse than the lowest so far; its "
        "value is then a mean over fewer samples.",
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
        "the layers is the budget, the same for every line. Strategies that keep the same number "
        "of tokens share a line.",
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
        text="How much each parameter decides whether a trial is among those of lowest divergence "
        "(PED-ANOVA). A parameter that every such trial has alike counts most.",
        caution=_rough(record) if record.rough else "",
        figures=[figures.importance_figure(record)] if record.parameter else [],
        instead=f"Fewer than {frames.MIN_TRIALS_FOR_IMPORTANCE} trials are too few to say.",
    )


def _rough(record: frames.ParameterImportance) -> str:
    return (
        f"With care: only {record.trials} trials were measured, and the {record.explained} of "
        f"lowest divergence among them are compared with all. Another seed may change the order; "
        f"from {frames.SOUND_TRIALS_FOR_IMPORTANCE} trials on it is steadier."
    )


def _parallel(run: Run, order: Sequence[str]) -> Section:
    record = landscape.parallel_coordinates(run.study, order)
    return Section(
        key="parallel",
        tab="parameters",
        title="All parameters at once",
        text="One line for each trial, from the first parameter to the last. Where the orange "
        "lines run together, the trials of lowest divergence agree. A name in the legend switches "
        "its lines.",
        figures=[landscape_figures.parallel_figure(record)] if len(record.trial) > 1 else [],
        instead="Fewer than two trials have been measured yet.",
    )


def _slices(run: Run, order: Sequence[str]) -> Section:
    records = landscape.slices(run.study, order)
    return Section(
        key="slice",
        tab="parameters",
        title="One parameter at a time",
        text="Mean divergence of each trial against the value of one parameter. Filled: measured "
        "on every sample; hollow: stopped early; orange diamond: found.",
        figures=landscape_figures.slice_figures(records),
        instead="No parameter has been tried with two values yet.",
    )


def _heatmap(run: Run, missing: Gap | None) -> Section:
    record = frames.sample_heatmap(run.study)
    return Section(
        key="heatmap",
        tab="samples",
        title="Which samples are hard",
        text="Divergence of each calibration sample (a column) under the fully measured trials of "
        "lowest mean divergence (rows, the lowest on top). A column that is bright throughout is a "
        "sample that no strategy handles at this budget.",
        figures=[figures.heatmap_figure(record)] if record.trial else [],
        after=thumbnails(run, record),
        instead=missing.why if missing else "No trial has been measured on all samples yet.",
        way=missing.command if missing else "",
    )


def _overlays(run: Run, allowance: int, missing: Gap | None) -> Section:
    return Section(
        key="overlays",
        tab="overlays",
        title="What is left of an image",
        text="What the strategy found does to the samples of highest, middle and lowest "
        "divergence: the tokens that each stage leaves alive are bright, those that it merges "
        "into one have one colour and an outline where the merged token stands.",
        before=overlay_cards(run, allowance),
        instead=missing.why
        if missing
        else "None were recorded; a search records them in its folder at its end.",
        way=missing.command if missing else "",
    )
