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
        text="Mean divergence of each trial from the unpruned model over the calibration "
        "samples; lower is better. Racing stops a trial early once it is significantly worse than "
        "the lowest so far; its value is then the mean over fewer samples.",
        figures=[figures.history_figure(record)] if record.trial else [],
        instead="No trial has been measured yet.",
    )


def _staircase(run: Run) -> Section:
    record = frames.staircase(run.study, run.baselines)
    return Section(
        key="staircase",
        tab="strategy",
        title="Visual tokens kept, layer by layer",
        text="Share of the visual tokens that each decoder layer still sees. The mean over the "
        "layers is the retention ratio, which is the same for every line. Strategies that keep the "
        "same share in every layer share a line.",
        figures=[figures.staircase_figure(record)] if record.alive else [],
        instead="No strategy has been measured yet.",
    )


def _stages(run: Run) -> Section:
    strategy = run.strategy
    head = ["decoder layers", "keep ratio", "visual tokens alive", "ranked by"]
    return Section(
        key="stages",
        tab="strategy",
        title="The strategy in words",
        text="The content of the strategy file, rounded. A keep ratio is relative to the tokens "
        "that the stage before has kept; alive is the share of all visual tokens.",
        before=""
        if strategy is None
        else html.table(head, stages(strategy)) + html.facts(ranking(strategy)),
        instead="No trial has been measured on all samples yet.",
    )


def _importance(record: frames.ParameterImportance) -> Section:
    return Section(
        key="importance",
        tab="parameters",
        title="Parameter importance",
        text="How much each parameter decides whether a trial is among those of lowest divergence "
        "(PED-ANOVA). A parameter matters most where these trials agree on its value.",
        caution=_rough(record) if record.rough else "",
        figures=[figures.importance_figure(record)] if record.parameter else [],
        instead=f"Fewer than {frames.MIN_TRIALS_FOR_IMPORTANCE} trials are too few to say.",
    )


def _rough(record: frames.ParameterImportance) -> str:
    return (
        f"Caution: only {record.trials} trials were measured, and the {record.explained} of "
        f"lowest divergence are compared with all of them. Another seed may change the order; it "
        f"is more stable from {frames.SOUND_TRIALS_FOR_IMPORTANCE} trials on."
    )


def _parallel(run: Run, order: Sequence[str]) -> Section:
    record = landscape.parallel_coordinates(run.study, order)
    return Section(
        key="parallel",
        tab="parameters",
        title="All parameters at once",
        text="Parallel coordinates: one line for each trial, from the first parameter to the "
        "last. The first value of a parameter is below its name, the last one on the right. Where "
        "the orange lines run together, the trials of lowest divergence agree. Click a name in "
        "the legend to show or hide its lines.",
        figures=[landscape_figures.parallel_figure(record)] if len(record.trial) > 1 else [],
        instead="Fewer than two trials have been measured yet.",
    )


def _slices(run: Run, order: Sequence[str]) -> Section:
    records = landscape.slices(run.study, order)
    return Section(
        key="slice",
        tab="parameters",
        title="One parameter at a time",
        text="Mean divergence of each trial against the value of one parameter. Filled points "
        "were measured on all samples, hollow points were stopped early; the orange diamond is "
        "the strategy found.",
        figures=landscape_figures.slice_figures(records),
        instead="No parameter has been tried with two values yet.",
    )


def _heatmap(run: Run, missing: Gap | None) -> Section:
    record = frames.sample_heatmap(run.study)
    return Section(
        key="heatmap",
        tab="samples",
        title="Which samples are hard",
        text="Divergence of each calibration sample (columns) under the trials of lowest mean "
        "divergence among those measured on all samples (rows, the lowest on top). Colours follow "
        "the square root of the divergence. A column that is bright throughout is a sample on "
        "which no strategy stays close to the unpruned model at this retention ratio.",
        figures=[figures.heatmap_figure(record)] if record.trial else [],
        after=thumbnails(run, record),
        instead=missing.why if missing else "No trial has been measured on all samples yet.",
        way=missing.command if missing else "",
    )


def _overlays(run: Run, allowance: int, missing: Gap | None) -> Section:
    return Section(
        key="overlays",
        tab="overlays",
        title="Visual tokens kept on each image",
        text="What the strategy found does to the samples of highest, middle and lowest "
        "divergence. The visual tokens that a stage keeps are shown in colour, dropped ones in "
        "grey. Tokens that are merged have one colour, and an outline marks the token that "
        "replaces them.",
        before=overlay_cards(run, allowance),
        instead=missing.why
        if missing
        else "None were recorded; a search records them in its folder at its end.",
        way=missing.command if missing else "",
    )
