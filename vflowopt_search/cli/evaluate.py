"""`evaluate`: accuracy with and without pruning, on the same labelled samples."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from vflowopt_search import run_folder
from vflowopt_search.cli import labelled_options, options, typed
from vflowopt_search.cli.candidates import Candidates, read_candidates
from vflowopt_search.cli.checking import CHECKING, check_once
from vflowopt_search.cli.console import print_json, quiet_progress_bars, stdout
from vflowopt_search.cli.evaluation_table import caution, parts
from vflowopt_search.cli.former_results import write_result
from vflowopt_search.cli.interrupted import resumable
from vflowopt_search.cli.job import RUNS, DataOptions, parse_columns
from vflowopt_search.cli.labelled import LabelledData, labelled_samples
from vflowopt_search.cli.model_choice import Model, chosen_model
from vflowopt_search.cli.output import check_folder
from vflowopt_search.cli.progress import display
from vflowopt_search.model_source import SHIPPED, ModelSource, load

if TYPE_CHECKING:
    from vflowopt_search.calibration.samples import CalibrationSet
    from vflowopt_search.cli.progress import Display
    from vflowopt_search.evaluate.evaluation import Evaluation

Named = Annotated[
    list[str],
    typer.Argument(
        metavar="STRATEGY...",
        help="Strategy files, output folders of a search, or baselines at the same budget: "
        "baseline:random, baseline:uniform, baseline:attention, baseline:fastv, "
        "baseline:pyramiddrop. baseline:random is one draw of tokens; baseline:random:1-4 are four "
        "others.",
    ),
]
Retain = Annotated[
    float | None,
    typer.Option(
        callback=typed.share,
        help="Retention ratio of the baselines, in (0, 1]. Default: that of the first file.",
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed for choosing samples and for the bootstrap.")]
Output = Annotated[
    Path | None,
    typer.Option(
        help="Folder. Default: that of the search, else runs/NAME-evaluation.",
        rich_help_panel="Where results go",
    ),
]


@dataclass(frozen=True)
class EvaluationJob:
    """One evaluation.

    Args:
        candidates: what is compared.
        source: how the model is loaded.
        data: the labelled samples.
        metric: how answers are scored.
        output: folder of the results.
        retain: budget of the baselines; None is that of the first file.
        max_new_tokens: longest answer.
        batch_size: samples asked together; None chooses.
        cache: folder in which a passed self-check is remembered; None is the user's.
        self_check: make sure that the model is pruned correctly, before anything is measured.
    """

    candidates: Candidates
    source: ModelSource
    data: LabelledData
    metric: str
    output: Path
    retain: float | None
    max_new_tokens: int
    batch_size: int | None
    cache: Path | None
    self_check: bool


def evaluate(
    strategies: Named,
    model: Model = None,
    data: labelled_options.Data = None,
    split: labelled_options.Split = None,
    columns: labelled_options.Columns = None,
    prompt: labelled_options.Prompt = None,
    instruction: labelled_options.Instruction = None,
    video_column: labelled_options.VideoColumn = None,
    turns: labelled_options.Turns = options.Turns.first,
    frames: labelled_options.Frames = None,
    fps: labelled_options.Fps = None,
    strict: labelled_options.Strict = False,
    questions: labelled_options.Questions = None,
    samples: labelled_options.OldQuestions = None,
    by: labelled_options.By = None,
    metric: labelled_options.Score = options.ScoreName.exact_match,
    retain: Retain = None,
    max_new_tokens: labelled_options.NewTokens = 32,
    seed: Seed = 0,
    device: options.Device = "auto",
    dtype: options.Dtype = options.DtypeName.auto,
    batch_size: options.BatchSize = None,
    trust_remote_code: options.TrustRemoteCode = False,
    output: Output = None,
    cache: options.Cache = None,
    self_check: options.SelfCheck = True,
    as_json: options.Json = False,
) -> None:
    """Measure what strategies cost in accuracy: the same questions, with and without pruning.

    Answers are stored as they come: the same command resumes where it stopped.

    Example: vflowopt-search evaluate runs/quickstart baseline:random --by type

    Example: vflowopt-search evaluate runs/mine --data qa.jsonl --metric anls
    """
    asked = labelled_options.num_questions(questions, samples)
    candidates = read_candidates(strategies)
    name = chosen_model(model, candidates.model_name)
    own = DataOptions(
        split, parse_columns(columns, video_column), prompt, turns.value, frames, fps, strict
    )
    job = EvaluationJob(
        candidates=candidates,
        source=ModelSource(name, device, dtype.value, trust_remote_code),
        data=LabelledData(
            source=chosen_data(data, name),
            options=own,
            samples=asked,
            by=by,
            instruction=instruction,
            lists_options=metric is options.ScoreName.multiple_choice,
            seed=seed,
        ),
        metric=metric.value,
        output=output or candidates.run or RUNS / f"{_called(candidates, name)}-evaluation",
        retain=retain,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        cache=cache,
        self_check=self_check,
    )
    candidates.require_budget(retain)
    with resumable("all answers are kept"):
        run(job, as_json=as_json)


def run(job: EvaluationJob, *, as_json: bool) -> None:
    """Do a job and print what came of it.

    Raises:
        VFlowOptError: it cannot be done.
    """
    start = time.monotonic()
    check_folder(job.output, "--output")
    check_folder(job.cache, "--cache")
    with display() as shown:
        evaluation, about = measured(job, shown)
    from vflowopt_search.evaluate.evaluation import content_of_file

    about["seconds"] = round(time.monotonic() - start, 3)
    path = job.output / run_folder.EVALUATION
    content = content_of_file(evaluation, about)
    write_result(path, content)
    if as_json:
        print_json(content)
        return
    console = stdout()
    for part in parts(evaluation, about):
        console.print(part, soft_wrap=not isinstance(part, Table))
    console.print(f"\nevaluation {path}", soft_wrap=True, markup=False)


def measured(job: EvaluationJob, shown: Display) -> tuple[Evaluation, dict[str, Any]]:
    """The evaluation, and on what and how it was made.

    Raises:
        VFlowOptError: files, samples, model or strategies cannot be used.
    """
    from vflowopt_search.calibration.refusals import without
    from vflowopt_search.evaluate import evaluation as evaluating
    from vflowopt_search.evaluate.answers import Asking, facts_of
    from vflowopt_search.evaluate.ledger import Ledger

    shown.phase("reading labelled samples")
    labelled = labelled_samples(job.data)
    evaluating.check_labels(labelled.samples, job.metric)
    ledger = Ledger(job.output / run_folder.ANSWERS)
    shown.phase(f"loading {job.source.name}")
    model, processor = checked_model(job.source, job.cache, shown, self_check=job.self_check)
    facts = facts_of(model, job.source.name)
    strategies, left_out = job.candidates.strategies(facts, job.retain)
    strict = job.data.options.strict
    asking = Asking(model, processor, job.batch_size, job.max_new_tokens, strict)
    shown.phase("answering", len(labelled) * (len(strategies) + 1))
    evaluation = evaluating.evaluate(
        asking,
        labelled.samples,
        strategies,
        metric=job.metric,
        ledger=ledger,
        seed=job.data.seed,
        progress=shown.step,
    )
    about = described(job, without(labelled, evaluation.refusals), asking)
    return evaluation, about | {"left_out": left_out}


def described(job: EvaluationJob, labelled: CalibrationSet, asking: Any) -> dict[str, Any]:
    """On what and how an evaluation was made."""
    from vflowopt_search.outcome import versions

    searched_on = job.candidates.searched_on(labelled.samples)
    return {
        "model": {"name": job.source.name, **asking.settings(), "device": str(asking.model.device)},
        "data": {
            "name": labelled.name,
            "samples": len(labelled),
            "sha256": labelled.sha256,
            "skipped": labelled.skipped,
            "note": labelled.note,
            "by": job.data.by,
            "instruction": job.data.instruction,
            "searched_on": searched_on,
            "caution": caution(searched_on, len(labelled)),
        },
        "versions": versions(),
    }


def checked_model(
    source: ModelSource, cache: Path | None, shown: Display, *, self_check: bool
) -> tuple[Any, Any]:
    """Model and processor, once it is sure that the model is pruned correctly."""
    from vflowopt_search.reference.cache import default_cache

    quiet_progress_bars()
    loaded = load(source)
    if self_check:
        check_once(*loaded, cache or default_cache(), partial(shown.phase, CHECKING))
    return loaded


def chosen_data(typed: str | None, model: str) -> str:
    """The data that was typed, else the shipped questions for the shipped model.

    Raises:
        typer.BadParameter: a model of one's own, but no data.
    """
    if typed is None and model != SHIPPED:
        raise typer.BadParameter(
            "a model of your own needs labelled samples: a dataset, a folder, JSON, JSONL or "
            "Parquet",
            param_hint="--data",
        )
    return typed or SHIPPED


def _called(candidates: Candidates, model: str) -> str:
    """What the results are called: the first strategy, or the model."""
    return next(iter(candidates.files), Path(model).name)
