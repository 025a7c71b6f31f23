"""The parts of a report about several runs beside each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vflowopt_search.report import figures, frames, html, landscape_figures, several
from vflowopt_search.report.caution import beaten
from vflowopt_search.report.facts import Result, results, textbook_of
from vflowopt_search.report.runs import Run
from vflowopt_search.report.section import Section
from vflowopt_search.report.summary_sections import columns, conditions, unheld
from vflowopt_search.report.words import FOUND


def compared(runs: Sequence[Run]) -> Iterator[Section]:
    """The parts about several runs."""
    yield _table_of_runs(runs)
    yield _strategies(runs)
    yield _budget(runs)
    yield _staircases(runs)
    yield _progress(runs)


def _table_of_runs(runs: Sequence[Run]) -> Section:
    found = [
        next((row for row in results(run) if row.name == FOUND), Result(FOUND)) for run in runs
    ]
    cells = {
        "run": list(several.named(runs)),
        "seed": [run.context.get("seed", "") for run in runs],
        "textbook": [textbook_of(run) or "" for run in runs],
        "trials": [str(len(frames.history(run.study).trial)) for run in runs],
        "divergence": [html.number(row.divergence) for row in found],
        "held-out divergence": [html.number(row.held_out) for row in found],
        "closest baseline": list(map(_closest, runs)),
        "accuracy kept": [html.percent(row.accuracy_kept) for row in found],
        "time to first token": [html.speed_up(row.speedup) for row in found],
        "KV cache": [html.size(row.kv_bytes) for row in found],
    }
    return Section(
        key="runs",
        tab="compare",
        title="The runs",
        text="The strategy that each run found; in brackets, the share of the visual tokens kept.",
        before=html.table(*html.filled(cells)),
        after=conditions(runs),
    )


def _closest(run: Run) -> str:
    """The baseline of lowest divergence, as on the run's own page."""
    baselines = frames.comparison(run.study, run.baselines).baselines
    return next((f"{name}: {html.number(value)}" for name, value in baselines.items()), "")


def _strategies(runs: Sequence[Run]) -> Section:
    """Every row of every run's own table of results."""
    rows = [(name, row) for name, run in several.named(runs).items() for row in results(run)]
    cells = {"run": [name for name, _ in rows], **columns([row for _, row in rows])}
    cautions = [
        f"{name}: {sentence}."
        for name, run in several.named(runs).items()
        if (sentence := beaten(results(run)))
    ]
    return Section(
        key="strategies",
        tab="compare",
        title="Strategies found and baselines",
        text="What was measured of each of them, run by run.",
        before=html.table(*html.filled(cells)) + unheld(runs) if rows else "",
        caution=f"Caution: {' '.join(cautions)}" if cautions else "",
        instead="No run has found a strategy yet.",
    )


def _budget(runs: Sequence[Run]) -> Section:
    record = several.budget_curve(runs)
    return Section(
        key="budget",
        tab="compare",
        title="Divergence against retention ratio",
        text=f"One point for each run, and a line through the medians. {record.remark}",
        figures=[landscape_figures.budget_figure(record)] if record.retain else [],
        instead=record.refusal or "No run has found a strategy yet.",
    )


def _staircases(runs: Sequence[Run]) -> Section:
    record = several.staircases(runs)
    return Section(
        key="staircases",
        tab="compare",
        title="Visual tokens kept, layer by layer",
        text="Share of the visual tokens that each decoder layer sees under the strategy found. "
        "Strategies that keep the same share in every layer share a line.",
        figures=[figures.staircase_figure(record)] if record.alive else [],
        instead="No run has found a strategy yet.",
    )


def _progress(runs: Sequence[Run]) -> Section:
    record = several.progress(runs)
    return Section(
        key="progress",
        tab="compare",
        title="Progress of the searches",
        text="The lowest divergence so far of a trial that was measured on all samples.",
        figures=[landscape_figures.progress_figure(record)] if record.trial else [],
        instead="No trial has been measured yet.",
    )
