"""The parts of a report about several runs beside each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vflowopt_search.report import figures, frames, html, landscape_figures, several
from vflowopt_search.report.facts import Result, results
from vflowopt_search.report.runs import Run
from vflowopt_search.report.section import Section
from vflowopt_search.report.words import FOUND


def compared(runs: Sequence[Run]) -> Iterator[Section]:
    """The parts about several runs."""
    yield _table_of_runs(runs)
    yield _budget(runs)
    yield _staircases(runs)
    yield _progress(runs)


def _table_of_runs(runs: Sequence[Run]) -> Section:
    found = [
        next((row for row in results(run) if row.name == FOUND), Result(FOUND)) for run in runs
    ]
    columns = {
        "run": [run.name for run in runs],
        "budget": [html.percent(run.retain) for run in runs],
        "seed": [run.context.get("seed", "") for run in runs],
        "trials": [str(len(frames.history(run.study).trial)) for run in runs],
        "divergence": [html.number(row.divergence) for row in found],
        "held out": [html.number(row.held_out) for row in found],
        "accuracy kept": [html.percent(row.accuracy_kept) for row in found],
        "lowest of plain ones": [
            html.number(min(run.baselines.values(), default=None)) for run in runs
        ],
    }
    return Section(
        key="runs",
        tab="compare",
        title="The runs",
        text="The strategy that each of them found.",
        before=html.table(*html.filled(columns)),
    )


def _budget(runs: Sequence[Run]) -> Section:
    record = several.budget_curve(runs)
    return Section(
        key="budget",
        tab="compare",
        title="Divergence against budget",
        text=f"What a token costs: a point for each run, a line through the medians. "
        f"{record.remark}",
        figures=[landscape_figures.budget_figure(record)] if record.retain else [],
        instead=record.refusal or "No run has found a strategy yet.",
    )


def _staircases(runs: Sequence[Run]) -> Section:
    record = several.staircases(runs)
    return Section(
        key="staircases",
        tab="compare",
        title="Where each budget goes",
        text="Share of the visual tokens alive, layer by layer, under what each run found. Runs "
        "that keep the same number everywhere share a line.",
        figures=[figures.staircase_figure(record)] if record.alive else [],
        instead="No run has found a strategy yet.",
    )


def _progress(runs: Sequence[Run]) -> Section:
    record = several.progress(runs)
    return Section(
        key="progress",
        tab="compare",
        title="How fast each search went",
        text="The lowest divergence so far of a fully measured trial.",
        figures=[landscape_figures.progress_figure(record)] if record.trial else [],
        instead="No trial has been measured yet.",
    )
