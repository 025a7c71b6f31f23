"""What a validation needs before it measures: trials, samples that are apart, an objective."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vflowopt_search import run_folder
from vflowopt_search.cli.labelled import LabelledData, labelled_samples
from vflowopt_search.cli.progress import UNPRUNED, phased
from vflowopt_search.errors import CalibrationError, StudyError
from vflowopt_search.model_source import SHIPPED, ModelSource
from vflowopt_search.strategy import Strategy

if TYPE_CHECKING:
    from vflowopt_search.calibration.samples import CalibrationSet, Sample
    from vflowopt_search.cli.progress import Display
    from vflowopt_search.evaluate.spread import Chosen, Tried
    from vflowopt_search.objective import Objective


@dataclass(frozen=True)
class ValidationJob:
    """One validation.

    Args:
        run: folder of a search.
        source: how the model is loaded.
        data: the labelled samples.
        calibration: where the calibration samples come from; None takes some of the labelled.
        strategies: how many.
        samples: how many calibration samples.
        questions: how many labelled samples.
        space: of fresh strategies.
        metric: how answers are scored.
        output: folder of the results.
        max_new_tokens: longest answer.
        batch_size: samples run together; None chooses.
        cache: folder of what no strategy changes; None is the user's.
        self_check: make sure that the model is pruned correctly, before anything is measured.
    """

    run: Path
    source: ModelSource
    data: LabelledData
    calibration: str | None
    strategies: int
    samples: int
    questions: int
    space: str
    metric: str
    output: Path
    max_new_tokens: int
    batch_size: int | None
    cache: Path | None
    self_check: bool


def read_trials(run: Path) -> list[Tried]:
    """The measured trials of a search, from its study or else from its table.

    Raises:
        StudyError: the folder has neither, or no trial was measured.
    """
    import pandas as pd

    from vflowopt_search.report.frames import trials_frame
    from vflowopt_search.report.runs import load_run

    if (run / run_folder.JOURNAL).is_file():
        frame = trials_frame(load_run(run).study)
    elif (run / run_folder.TRIALS).is_file():
        frame = pd.read_parquet(run / run_folder.TRIALS)
    else:
        raise StudyError(
            f"{run} has neither {run_folder.JOURNAL} nor {run_folder.TRIALS}; give the output "
            "folder of a search"
        )
    if {"value", "strategy"} <= set(frame.columns):
        rows = frame.dropna(subset=["value", "strategy"]).to_dict("records")
        if rows:
            return [_tried(int(row["number"]), row["strategy"], row["value"]) for row in rows]
    raise StudyError(f"no trial in {run} was measured; search on, or give another folder")


def _tried(number: int, strategy: str, value: float) -> Tried:
    from vflowopt_search.evaluate.spread import Tried

    return Tried(number, Strategy.loads(strategy, f"trial {number}"), value)


def searched_space(run: Path) -> str:
    """The space that a search was told, by its summary; the usual one without."""
    try:
        told = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        return str(told["recipe"]["space"])
    except (OSError, ValueError, KeyError, TypeError):
        return "vflowopt"


def samples_apart(job: ValidationJob) -> tuple[CalibrationSet, CalibrationSet]:
    """Calibration samples, and labelled questions about none of their images.

    Raises:
        CalibrationError: they cannot be read, or no question is left.
    """
    from vflowopt_search.calibration.choice import from_dataset
    from vflowopt_search.calibration.samples import fingerprint
    from vflowopt_search.calibration.shared_images import about_others, apart

    labelled = labelled_samples(job.data)
    if job.calibration is None:
        mine, questions = apart(labelled.samples, job.samples)
        # what was left out of both is told of the questions
        labelled = replace(labelled, refused=0)
        calibration = replace(
            labelled, samples=mine, sha256=fingerprint(mine), asked=job.samples, left_out=""
        )
    else:
        if job.calibration == SHIPPED:
            from vflowopt_search.testbed.data import calibration_dataset

            rows = calibration_dataset(job.samples, job.data.seed)
            calibration = from_dataset(rows, name=SHIPPED, num_samples=job.samples)
        else:
            calibration = _own(job.calibration, job)
        questions = about_others(labelled.samples, calibration.samples)
    if not questions:
        raise CalibrationError(
            f"{labelled.name} has no sample left to ask about other images than those of the "
            f"{len(calibration)} calibration samples; ask for fewer with --samples"
        )
    asked = questions[: job.questions]
    return calibration, replace(
        labelled, samples=asked, sha256=fingerprint(asked), asked=job.questions
    )


def seen_by_search(run: Path, questions: Sequence[Sample]) -> dict[str, Any]:
    """How many questions show images that the search saw, and what to say then.

    Returns:
        `searched_on`, None where it is not known, and `caution`, empty where there is none.

    Raises:
        VFlowOptError: the folder's strategy, or its list of images, cannot be read.
    """
    from vflowopt_search.calibration.seen_images import fingerprints
    from vflowopt_search.cli.candidates import seen_by

    file = run / run_folder.STRATEGY
    seen = seen_by(Strategy.load(file), run) if file.is_file() else None
    if seen is None:
        return {"searched_on": None, "caution": ""}
    count = seen.count([fingerprints(question) for question in questions])
    caution = (
        f"{count} of these {len(questions)} questions show{'s' if count == 1 else ''} images that "
        "the search saw: the accuracy of its trials there may flatter them"
    )
    return {"searched_on": count, "caution": caution * bool(count)}


def _own(source: str, job: ValidationJob) -> CalibrationSet:
    """Calibration samples of one's own, read as the labelled ones; columns may be absent there."""
    from vflowopt_search.calibration.choice import load_calibration
    from vflowopt_search.calibration.rows import Columns
    from vflowopt_search.calibration.sources import open_rows

    options = job.data.options
    existing = open_rows(source, options.split)[0].column_names
    named = {ours: theirs for ours, theirs in options.columns.items() if theirs in existing}
    return load_calibration(
        source,
        split=options.split,
        columns=Columns(**named, turns=options.turns),
        num_samples=job.samples,
        seed=job.data.seed,
        prompt=options.prompt,
        frames=options.frames,
        fps=options.fps,
        strict=options.strict,
    )


def validation_objective(
    job: ValidationJob, loaded: tuple[Any, Any], calibration: CalibrationSet, shown: Display
) -> Objective:
    """The unpruned model measured once, also along its answers."""
    from vflowopt_search.evaluate.validation import MODEL_METRIC
    from vflowopt_search.objective import build_objective
    from vflowopt_search.reference.cache import default_cache

    return build_objective(
        *loaded,
        calibration,
        metric=MODEL_METRIC,
        batch_size=job.batch_size,
        cache=job.cache or default_cache(),
        progress=phased(shown, UNPRUNED),
        name=job.source.name,
        strict=job.data.options.strict,
    )


def chosen_strategies(job: ValidationJob, tried: list[Tried], objective: Objective) -> list[Chosen]:
    """A spread of the study's strategies and of fresh ones, all for this model.

    Raises:
        VFlowOptError: the trials are of another model, or too few.
    """
    from vflowopt_search.budget import mean_retained
    from vflowopt_search.evaluate.spread import spread
    from vflowopt_search.search_space import SearchSpace

    identity = objective.facts.identity
    for one in tried:
        one.strategy.check_fits(identity)
    retain = mean_retained(tried[0].strategy.stages, identity.decoder_layers)
    if tried[0].strategy.budget is not None:
        retain = tried[0].strategy.budget.mean_retained
    space = SearchSpace.load(job.space).bind(objective.facts)
    return spread(tried, space, retain, job.strategies, job.data.seed)
