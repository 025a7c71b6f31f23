"""The work of `search`: prepare, run the study, write files, compare, print."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from functools import partial

import typer

from vflowopt_search import run_folder
from vflowopt_search.cli import comparison
from vflowopt_search.cli.closing import Closing, export
from vflowopt_search.cli.comparison import Row
from vflowopt_search.cli.console import legend, print_json, stdout
from vflowopt_search.cli.held_out import HeldOut
from vflowopt_search.cli.interrupted import INTERRUPTED, typed_again
from vflowopt_search.cli.job import Job
from vflowopt_search.cli.output import check_folder, output_folder
from vflowopt_search.cli.pictures import write_command, write_page, write_seen_images
from vflowopt_search.cli.preparation import prepare
from vflowopt_search.cli.progress import Display, display
from vflowopt_search.cli.running import check_devices, check_resumable, run_all
from vflowopt_search.cli.summary import Summary


def run(job: Job, *, as_json: bool) -> None:
    """Do a job and print what came of it.

    Raises:
        VFlowOptError: it cannot be done.
        typer.Exit: it was interrupted.
    """
    begun = time.monotonic()
    check_folder(job.output, "--output")
    check_folder(job.cache, "--cache")
    try:
        with output_folder(job.output), display() as shown:
            closing = _prepared_and_searched(job, shown, begun)
            in_trials = closing.outcome.interrupted
            if not in_trials:
                closing.finish()
        closing.write()
        write_page(job, closing.outcome)
    except KeyboardInterrupt:
        _say_how_to_go_on(None)
        raise typer.Exit(INTERRUPTED) from None
    rows = () if in_trials else closing.comparison.rows
    _print(closing.summary(), rows, job.recipe.trials, as_json=as_json)
    prepared = closing.prepared
    fixed = prepared.space.bind(prepared.objective.facts).notes
    # that of the calibration set was told before the trials, which may take hours
    for remark in filter(None, (*fixed, closing.held_out.note)):
        typer.echo(f"note: {remark}", err=True)
    if closing.outcome.interrupted:
        _say_how_to_go_on(closing.outcome.divergence)
        raise typer.Exit(INTERRUPTED)


def _prepared_and_searched(job: Job, shown: Display, begun: float) -> Closing:
    """Prepare and run the trials; what is left to do is in the `Closing`."""
    from vflowopt_search.evaluate.ledger import Ledger
    from vflowopt_search.trials import num_counted

    check_devices(job)
    check_resumable(job)
    prepared = prepare(job, shown, partial(check_resumable, job))
    held_out = HeldOut(job, prepared, Ledger(job.output / run_folder.DIVERGENCES), shown)
    if job.data.strict:
        held_out.require_all()  # not after hours of trials
    if not (job.output / run_folder.COMMAND).exists():
        write_command(job)  # now, for a report while the search runs
    outcome = run_all(job, prepared, shown)
    job = job.with_at_least(num_counted(outcome.study.get_trials(deepcopy=False)))
    write_command(job)  # not before: a search that is refused leaves the folder alone
    export(job, outcome)  # before anything else can go wrong
    write_seen_images(job, prepared.calibration)
    return Closing(job, prepared, outcome, held_out, shown, begun)


def _print(summary: Summary, rows: Sequence[Row], asked: int, *, as_json: bool) -> None:
    if as_json:
        print_json(json.loads(summary.to_json()))
        return
    console = stdout()
    console.print(summary.sentence(asked), soft_wrap=True)
    for remark in summary.remarks():
        console.print(remark, style="yellow", markup=False, soft_wrap=True)
    if rows:
        console.print(comparison.rendered(rows))
        told = comparison.explained(rows, summary.recipe["metric"], summary.calibration["samples"])
        console.print(legend(told), soft_wrap=True)
        if warning := comparison.caution(rows):
            console.print(f"[yellow]{warning}[/yellow]", soft_wrap=True)
    for name, path in summary.files.items():
        console.print(f"{name:<9} {path}", soft_wrap=True)


def _say_how_to_go_on(best: float | None) -> None:
    found = "" if best is None else f", best so far {best:.5f}"
    typer.echo(f"interrupted{found}; all finished trials are kept. Go on with:", err=True)
    typer.echo(f"  {typed_again()}", err=True)
