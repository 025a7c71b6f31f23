"""`validate`: does a low divergence mean a high accuracy? Asked of a spread of strategies."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from vflowopt_search import run_folder
from vflowopt_search.cli import labelled_options, options
from vflowopt_search.cli.console import print_json, stdout
from vflowopt_search.cli.evaluate import checked_model, chosen_data
from vflowopt_search.cli.former_results import write_result
from vflowopt_search.cli.interrupted import resumable
from vflowopt_search.cli.job import DataOptions, parse_columns
from vflowopt_search.cli.labelled import LabelledData
from vflowopt_search.cli.model_choice import Model, chosen_model
from vflowopt_search.cli.output import check_folder
from vflowopt_search.cli.progress import display, phased
from vflowopt_search.cli.validation_inputs import (
    ValidationJob,
    chosen_strategies,
    read_trials,
    samples_apart,
    searched_space,
    seen_by_search,
    validation_objective,
)
from vflowopt_search.cli.validation_table import parts
from vflowopt_search.model_source import SHIPPED, ModelSource

if TYPE_CHECKING:
    from vflowopt_search.calibration.samples import CalibrationSet
    from vflowopt_search.cli.progress import Display
    from vflowopt_search.evaluate.answers import Asking
    from vflowopt_search.evaluate.spread import Tried
    from vflowopt_search.evaluate.validation import Validation

Run = Annotated[
    Path,
    typer.Argument(
        metavar="RUN", help="Output folder of a search, with its study or just its table of trials."
    ),
]
Calibration = Annotated[
    str | None,
    typer.Option(help="Samples to measure divergences on. Default: some of --data."),
]
NumStrategies = Annotated[
    int, typer.Option("--strategies", min=8, help="Number of strategies to evaluate.")
]
NumCalibration = Annotated[
    int, typer.Option("--samples", min=2, help="Number of calibration samples.")
]
NumQuestions = Annotated[
    int, typer.Option("--questions", min=1, help="Number of labelled samples, of other images.")
]
Space = Annotated[
    str | None, typer.Option(help="Space of the fresh strategies. Default: that of the search.")
]
Seed = Annotated[
    int,
    typer.Option(min=0, help="Seed for choosing strategies and samples, and for the bootstrap."),
]
Output = Annotated[
    Path | None,
    typer.Option(help="Folder. Default: RUN.", rich_help_panel="Where results go"),
]


def validate(
    run: Run,
    model: Model = None,
    data: labelled_options.Data = None,
    calibration: Calibration = None,
    split: labelled_options.Split = None,
    columns: labelled_options.Columns = None,
    prompt: labelled_options.Prompt = None,
    instruction: labelled_options.Instruction = None,
    video_column: labelled_options.VideoColumn = None,
    turns: labelled_options.Turns = options.Turns.first,
    frames: labelled_options.Frames = None,
    fps: labelled_options.Fps = None,
    strict: labelled_options.Strict = False,
    strategies: NumStrategies = 60,
    samples: NumCalibration = 256,
    questions: NumQuestions = 600,
    space: Space = None,
    metric: labelled_options.Score = options.ScoreName.exact_match,
    max_new_tokens: labelled_options.NewTokens = 32,
    seed: Seed = 1,
    device: options.Device = "auto",
    dtype: options.Dtype = options.DtypeName.auto,
    batch_size: options.BatchSize = None,
    trust_remote_code: options.TrustRemoteCode = False,
    output: Output = None,
    cache: options.Cache = None,
    self_check: options.SelfCheck = True,
    as_json: options.Json = False,
) -> None:
    """Measure how well each divergence predicts accuracy, by number of samples.

    A spread of the study's strategies, and fresh ones, are measured by every divergence and asked
    labelled questions about other images. Results are stored as they come: the same command
    resumes where it stopped.

    Example: vflowopt-search validate runs/quickstart --questions 400
    """
    tried = read_trials(run)
    name = chosen_model(
        model, next((t.strategy.model.name for t in tried if t.strategy.model), None)
    )
    own = DataOptions(
        split, parse_columns(columns, video_column), prompt, turns.value, frames, fps, strict
    )
    source = chosen_data(data, name)
    needs_more = source != SHIPPED and calibration is None
    job = ValidationJob(
        run=run,
        source=ModelSource(name, device, dtype.value, trust_remote_code),
        data=LabelledData(
            source,
            own,
            samples=questions + samples * needs_more,
            instruction=instruction,
            lists_options=metric is options.ScoreName.multiple_choice,
            seed=seed,
        ),
        calibration=calibration or (SHIPPED if source == SHIPPED else None),
        strategies=strategies,
        samples=samples,
        questions=questions,
        space=space or searched_space(run),
        metric=metric.value,
        output=output or run,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        cache=cache,
        self_check=self_check,
    )
    with resumable("all that was measured is kept"):
        _run(job, tried, as_json=as_json)


def _run(job: ValidationJob, tried: list[Tried], *, as_json: bool) -> None:
    start = time.monotonic()
    check_folder(job.output, "--output")
    check_folder(job.cache, "--cache")
    with display() as shown:
        validation, about = validated(job, tried, shown)
    about |= {"seconds_of_last_run": round(time.monotonic() - start, 3)}
    path = job.output / run_folder.VALIDATION
    content = {**about, **validation.to_plain()}
    write_result(path, content)
    if as_json:
        print_json(content)
        return
    console = stdout()
    for part in parts(validation, about):
        console.print(part, soft_wrap=isinstance(part, Text))
    console.print(f"\nvalidation {path}", soft_wrap=True, markup=False)


def validated(
    job: ValidationJob, tried: list[Tried], shown: Display
) -> tuple[Validation, dict[str, Any]]:
    """The validation, and on what it was made.

    Raises:
        VFlowOptError: trials, samples, model or space cannot be used.
    """
    from vflowopt_search.calibration.refusals import without
    from vflowopt_search.evaluate import validation as validating
    from vflowopt_search.evaluate.answers import Asking
    from vflowopt_search.evaluate.evaluation import check_labels
    from vflowopt_search.evaluate.ledger import Ledger

    shown.phase("reading samples")
    calibration, questions = samples_apart(job)
    check_labels(questions.samples, job.metric)
    shown.phase(f"loading {job.source.name}")
    loaded = checked_model(job.source, job.cache, shown, self_check=job.self_check)
    objective = validation_objective(job, loaded, calibration, shown)
    chosen = chosen_strategies(job, tried, objective)
    calibration = objective.calibration
    strict = job.data.options.strict
    asking = Asking(*loaded, job.batch_size, job.max_new_tokens, strict)
    shown.phase("measuring divergences", len(chosen) * len(calibration))
    validation = validating.validate(
        asking,
        objective,
        calibration.samples,
        questions.samples,
        chosen,
        metric=job.metric,
        divergences=Ledger(job.output / run_folder.DIVERGENCES),
        answers=Ledger(job.output / run_folder.ANSWERS),
        seed=job.data.seed,
        on_divergence=shown.step,
        on_answer=phased(shown, "answering", (len(chosen) + 1) * len(questions)),
    )
    asked = without(questions, validation.refusals)
    about = _about(job, asking, calibration, asked)
    return validation, {"format": validating.FORMAT, **about}


def _about(
    job: ValidationJob, asking: Asking, calibration: CalibrationSet, asked: CalibrationSet
) -> dict[str, Any]:
    """On what a validation was made."""
    from vflowopt_search.adapters.registry import adapter_for
    from vflowopt_search.outcome import versions

    return {
        "model": {
            "name": job.source.name,
            **asking.settings(),
            "device": str(adapter_for(asking.model).backbone.device),
        },
        "study": str(job.run),
        "space": job.space,
        "calibration": _told(calibration),
        "data": {
            **_told(asked),
            "instruction": job.data.instruction,
            **seen_by_search(job.run, asked.samples),
        },
        "versions": versions(),
    }


def _told(samples: CalibrationSet) -> dict[str, Any]:
    """What the file says of some samples."""
    return {
        "name": samples.name,
        "samples": len(samples),
        "sha256": samples.sha256,
        "skipped": samples.skipped,
        "note": samples.note,
    }
