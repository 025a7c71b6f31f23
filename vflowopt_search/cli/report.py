"""`report` and `dashboard`: runs as one page, or in Optuna's dashboard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vflowopt_search import run_folder
from vflowopt_search.cli import options, typed
from vflowopt_search.cli.console import print_json, stdout
from vflowopt_search.errors import StudyError

if TYPE_CHECKING:
    from vflowopt_search.cli.job import DataOptions, Job
    from vflowopt_search.model_source import ModelSource
    from vflowopt_search.report.runs import Run

PORT = 8080
SEVERAL = Path("report.html")

Runs = Annotated[
    list[Path],
    typer.Argument(help="Output folders of searches, or results that were kept of them."),
]
OneRun = Annotated[Path, typer.Argument(help="Output folder of a search.")]
Page = Annotated[
    Path | None,
    typer.Option(
        help="HTML file. Default: report.html in the run's folder or, of several runs, in this one."
    ),
]
Title = Annotated[str | None, typer.Option(help="Heading. Default: the names of the studies.")]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Record overlays now with this model: hub name or folder. Default: none, unless "
        "--calibration is given.",
    ),
]
Storage = Annotated[
    str | None,
    typer.Option(
        callback=typed.database,
        help="Optuna database URL, if the search was given one. Default: the run's folder.",
    ),
]
Calibration = Annotated[
    str | None,
    typer.Option(
        help="Samples that the search saw, for overlays. Default: its own.",
        rich_help_panel="Calibration data",
    ),
]
Port = Annotated[int, typer.Option(min=1, max=65535, help="TCP port, on this machine alone.")]


def report(
    runs: Runs,
    output: Page = None,
    title: Title = None,
    model: ModelOption = None,
    calibration: Calibration = None,
    split: options.Split = None,
    columns: options.Columns = None,
    prompt: options.Prompt = None,
    device: options.Device = "auto",
    dtype: options.Dtype = options.DtypeName.auto,
    storage: Storage = None,
    as_json: options.Json = False,
) -> None:
    """Write one HTML page about a run, or several beside each other; it needs no network.

    A search writes the page itself in the end; this writes it again, also while a search runs.
    What `evaluate` and `bench` left in the folder is shown too; what is missing is said, with
    the command that adds it.

    Example: vflowopt-search report runs/quickstart

    Example: vflowopt-search report runs/a runs/b --output both.html
    """
    from vflowopt_search.cli.job import DataOptions, parse_columns
    from vflowopt_search.cli.output import check_file
    from vflowopt_search.cli.pictures import written
    from vflowopt_search.model_source import ModelSource
    from vflowopt_search.report.gaps import gaps
    from vflowopt_search.report.page import write_report
    from vflowopt_search.report.runs import load_run

    data = DataOptions(split, parse_columns(columns), prompt)
    if data.typed and model is None and calibration is None:
        raise typer.BadParameter(
            "samples are read for overlays only; name the model that records them with --model",
            param_hint=data.typed[0],
        )
    check_file(output, "--output")
    loaded = [load_run(folder, storage=storage) for folder in runs]
    if model is not None or calibration is not None:
        for run in loaded:
            source = ModelSource(model or run.context.get("model", ""), device, dtype.value)
            _record(run, source, data, calibration)
        loaded = [load_run(folder, storage=storage) for folder in runs]
    page = output or (runs[0] / run_folder.REPORT if len(runs) == 1 else SEVERAL)
    with written(page):
        write_report(loaded, page, title=title)
    missing = {folder: list(gaps(run).values()) for folder, run in zip(runs, loaded, strict=True)}
    if as_json:
        told = [
            {"run": str(run)} | asdict(gap) for run, several in missing.items() for gap in several
        ]
        about = {"report": str(page), "bytes": page.stat().st_size}
        print_json(about | {"runs": [run.name for run in loaded], "missing": told})
        return
    stdout().print(f"report  {page}", soft_wrap=True)
    for folder, run in zip(runs, loaded, strict=True):
        _say_what_is_missing(folder, run, [gap.what for gap in missing[folder]])


def _say_what_is_missing(folder: Path, run: Run, missing: Sequence[str]) -> None:
    """What the page does not show of a run, on stderr; the page says why and what adds it."""
    from vflowopt_search.report import facts
    from vflowopt_search.report.gaps import END

    if run.restored:
        typer.echo(
            f"note: {folder} holds a result and not the study ({run_folder.JOURNAL}); its trials "
            f"are those of {run_folder.TRIALS}",
            err=True,
        )
    if still := facts.missing(run):
        command = f"; go on with:\n  {run.command}" if run.command else ""
        typer.echo(f"note: {run.name} has not measured {'; '.join(still)}{command}", err=True)
    if others := [what for what in missing if what != END or not still]:
        typer.echo(
            f"note: not in the report of {folder}: {', '.join(others)}; the page says why, and "
            f"which command adds each",
            err=True,
        )


def dashboard(run: OneRun, port: Port = PORT, storage: Storage = None) -> None:
    r"""Open a run's study in Optuna's dashboard, on this machine alone; Ctrl-C ends it.

    It may be open while the search runs. Needs pip install "vflowopt-search\[dashboard]".

    Example: vflowopt-search dashboard runs/quickstart --port 8080
    """
    from vflowopt_search.report.dashboard import serve

    address = f"http://127.0.0.1:{port}/"
    serve(run, port, url=storage, ready=lambda: typer.echo(f"{run.name}: {address}"))


def _record(run: Run, source: ModelSource, data: DataOptions, calibration: str | None) -> None:
    """Record overlays of a run's best strategy, with the model that it was searched for.

    Raises:
        StudyError: the run has no strategy yet, or the samples are not those of the study.
    """
    from vflowopt_search.cli.pictures import write_overlays
    from vflowopt_search.cli.preparation import chosen_samples, prepare
    from vflowopt_search.cli.progress import display

    if run.strategy is None or run.folder is None:
        raise StudyError(f"study {run.name!r} has no strategy yet; search on, then report again")
    if not source.model:
        raise StudyError(f"study {run.name!r} names no model; name it with --model")
    if not (calibration or run.context.get("calibration")):
        raise StudyError(f"study {run.name!r} names no samples; name them with --calibration")
    job = _job(run, source, data, calibration)
    if run.context.get("samples") == str(job.recipe.samples):  # the processor took them all
        _refuse_others(run, chosen_samples(job).sha256)
    with display() as shown:
        prepared = prepare(job, shown)
        _refuse_others(run, prepared.calibration.sha256)
        write_overlays(run.folder, prepared.objective, run.study, run.strategy, shown)


def _refuse_others(run: Run, found: str) -> None:
    measured = str(run.context.get("calibration_sha256"))
    if measured != found:
        raise StudyError(
            f"these are not the samples of study {run.name!r} (fingerprint {found[:12]}, but it "
            f"measured {measured[:12]}); give the same --calibration, --columns and --prompt"
        )


def _job(run: Run, source: ModelSource, data: DataOptions, calibration: str | None) -> Job:
    """The search that the run was, as far as overlays depend on it."""
    from vflowopt_search.cli.job import Job
    from vflowopt_search.recipe import StudyRecipe

    assert run.folder is not None
    context = run.context
    fields: dict[str, Any] = {
        "format": "vflowopt-study/1",
        "description": "Overlays of a run.",
        "model": source.model,
        "calibration": calibration or context.get("calibration", ""),
        "space": "vflowopt",
        "retain": run.retain or 1.0,
        "trials": 1,
        "samples": int(run.summary.get("recipe", context).get("samples", 1)),
        "seed": int(context.get("seed", 0)),
        "metric": context.get("metric", "last_token_cosine"),
    }
    recipe = StudyRecipe(**fields)
    halved = bool(run.summary.get("calibration", {}).get("halved"))
    return Job(recipe=recipe, source=source, data=data, output=run.folder, halve=halved)
