"""The work of `search`: prepare, run the study, write files, compare, print."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from vflowopt_search import run_folder
from vflowopt_search.cli import comparison
from vflowopt_search.cli.comparison import FOUND, Row
from vflowopt_search.cli.console import legend, print_json, stdout
from vflowopt_search.cli.held_out import HeldOut
from vflowopt_search.cli.job import Job
from vflowopt_search.cli.loading import SHIPPED
from vflowopt_search.cli.output import check_folder, output_folder
from vflowopt_search.cli.pictures import (
    write_baselines,
    write_command,
    write_overlays,
    write_page,
    written,
)
from vflowopt_search.cli.preparation import Prepared, held_out_questions, prepare
from vflowopt_search.cli.progress import Display, display
from vflowopt_search.cli.summary import Summary, earlier_comparison
from vflowopt_search.errors import StudyError

if TYPE_CHECKING:
    from vflowopt_search.outcome import StudyOutcome, TrialReport
    from vflowopt_search.strategy import Strategy

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


def run(job: Job, *, as_json: bool) -> None:
    """Do a job and print what came of it.

    Raises:
        VFlowOptError: it cannot be done.
        typer.Exit: it was interrupted.
    """
    start = time.monotonic()
    check_folder(job.output, "--output")
    check_folder(job.cache, "--cache")
    try:
        with output_folder(job.output), display() as shown:
            prepared = prepare(job, shown)
            held_out = HeldOut(job, prepared, shown)
            if not (job.output / run_folder.COMMAND).exists():
                write_command(job)  # now, for a report while the search runs
            outcome = run_trials(job, prepared, shown)
            write_command(job)  # not before: a search that is refused leaves the folder alone
            export(job, outcome)  # before anything else can go wrong
            if not outcome.interrupted:
                outcome = held_out.rescored(outcome)
                export(job, outcome)
            rows = [] if outcome.interrupted else compare(job, prepared, outcome, held_out, shown)
            write_baselines(job, rows)
            if rows:
                best = _best(outcome)
                write_overlays(job.output, prepared.objective, outcome.study, best, shown)
        summary = Summary.of(job, prepared, outcome, rows, time.monotonic() - start)
        if rows:
            summary.write(job.output)
        write_page(job, outcome)
    except KeyboardInterrupt:
        _say_how_to_go_on(None)
        raise typer.Exit(INTERRUPTED) from None
    _print(summary, rows, as_json)
    fixed = prepared.space.bind(prepared.objective.facts).notes
    for remark in filter(None, (*fixed, prepared.calibration.note, held_out.note)):
        typer.echo(f"note: {remark}", err=True)
    if outcome.interrupted:
        _say_how_to_go_on(outcome.divergence)
        raise typer.Exit(INTERRUPTED)


def run_trials(job: Job, prepared: Prepared, shown: Display) -> StudyOutcome:
    """Run the trials that are still to be run."""
    from vflowopt_search.report.artifacts import BestPictures
    from vflowopt_search.storage import open_storage
    from vflowopt_search.study import StudySettings, run_study, study_context

    recipe, facts = job.recipe, prepared.objective.facts
    storage = open_storage(job.storage_or_journal)
    folder = job.output / run_folder.ARTIFACTS
    pictures = BestPictures(prepared.objective, storage, job.study_name, folder)

    def on_trial(report: TrialReport) -> None:
        shown.trial(report)
        pictures(report)

    shown.phase("trials", recipe.trials)
    return run_study(
        prepared.objective,
        prepared.space.bind(facts),
        StudySettings(
            job.study_name,
            recipe.retain,
            recipe.trials,
            recipe.seed,
            job.racing,
            trials_per_batch=job.trials_per_batch,
        ),
        storage=storage,
        context={
            **study_context(facts.identity, prepared.calibration, prepared.space),
            **prepared.objective.fingerprint,
        },
        on_trial=on_trial,
    )


def export(job: Job, outcome: StudyOutcome) -> None:
    """Write what the study found so far: the best strategy and all trials.

    Raises:
        VFlowOptError: a file cannot be written.
    """
    from vflowopt_search.report.frames import write_trials

    if outcome.best is not None:
        outcome.best.save(job.output / run_folder.STRATEGY)
    with written(job.output / run_folder.TRIALS) as path:
        write_trials(outcome.study, path)


def compare(
    job: Job, prepared: Prepared, outcome: StudyOutcome, held_out: HeldOut, shown: Display
) -> list[Row]:
    """The found strategy beside plain ones at the same budget; measured once for one strategy.

    Raises:
        StudyError: nothing was found.
    """
    from vflowopt_search.baselines import baseline_strategies

    best = _best(outcome)
    shipped = job.source.model == job.recipe.calibration == SHIPPED and not job.source.random_init
    with_accuracy = job.accuracy and shipped
    known = earlier_comparison(job.output, best, with_accuracy=with_accuracy)
    if known is not None:
        return known
    strategies = baseline_strategies(prepared.objective.facts, job.recipe.retain)
    shown.phase("comparing at the same budget")
    means = {FOUND: outcome.divergence or 0.0}
    means |= comparison.mean_divergences(prepared.objective, strategies, shown.step)
    others: dict[str, float] = {}
    if held_out.objective is not None:
        shown.phase("comparing on held-out samples")
        others = comparison.mean_divergences(held_out.objective, strategies, shown.step)
        others |= comparison.held_out_of(best)
    accuracy: dict[str, float] = {}
    if with_accuracy:
        shown.phase("answering held-out questions")
        questions, all_of_them = held_out_questions(), {FOUND: best, **strategies}
        accuracy = comparison.accuracies(prepared.loaded, questions, all_of_them, shown.step)
    return comparison.rows(job.recipe.retain, means, accuracy, others)


def _best(outcome: StudyOutcome) -> Strategy:
    if outcome.best is not None:
        return outcome.best
    from vflowopt_search import trials

    reasons = [trial.user_attrs.get(trials.FAILURE) for trial in outcome.study.get_trials()]
    last = next((reason for reason in reversed(reasons) if reason), "no reason was stored")
    raise StudyError(
        f"none of the {len(reasons)} trials of study {outcome.study.study_name!r} was measured "
        f"on every sample (last failure: {last}); search again into another output folder"
    )


def _print(summary: Summary, rows: Sequence[Row], as_json: bool) -> None:
    if as_json:
        print_json(json.loads(summary.to_json()))
        return
    console = stdout()
    console.print(summary.sentence(), soft_wrap=True)
    if rows:
        console.print(comparison.rendered(rows))
        told = comparison.explained(rows, summary.recipe["metric"], summary.calibration["samples"])
        console.print(legend(told), soft_wrap=True)
    for name, path in summary.files.items():
        console.print(f"{name:<9} {path}", soft_wrap=True)


def _say_how_to_go_on(best: float | None) -> None:
    found = "" if best is None else f", best so far {best:.5f}"
    command = shlex.join(["vflowopt-search", *sys.argv[1:]])
    typer.echo(f"interrupted{found}; all finished trials are kept. Go on with:", err=True)
    typer.echo(f"  {command}", err=True)
