"""What a search needs before its first trial: model, samples, objective, bound space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vflowopt_search.cli.checking import check_once
from vflowopt_search.cli.console import quiet_progress_bars
from vflowopt_search.cli.job import Job
from vflowopt_search.errors import NothingLeftError
from vflowopt_search.model_source import SHIPPED, load

if TYPE_CHECKING:
    from vflowopt_search.calibration.samples import CalibrationSet, Sample
    from vflowopt_search.cli.progress import Display
    from vflowopt_search.evaluate.kept import KeptObjective
    from vflowopt_search.evaluate.ledger import Ledger
    from vflowopt_search.objective import Objective
    from vflowopt_search.search_space import SearchSpace

HELD_OUT_QUESTIONS = 1200


@dataclass(frozen=True)
class Prepared:
    """Everything loaded and measured that no trial changes.

    Attributes:
        loaded: model and processor.
        calibration: the chosen samples, without those that the processor does not take.
        objective: measures strategies on them.
        space: what is searched.
    """

    loaded: tuple[Any, Any]
    calibration: CalibrationSet
    objective: Objective
    space: SearchSpace

    def kept(self, ledger: Ledger) -> KeptObjective:
        """The objective, for what is measured once and kept in a ledger."""
        from vflowopt_search.evaluate.kept import KeptObjective

        return KeptObjective(self.objective, self.calibration.samples, ledger)


def prepare(job: Job, shown: Display) -> Prepared:
    """Load and measure what no trial changes; wrong files are refused before the model is loaded.

    Raises:
        VFlowOptError: the space, the samples or the model cannot be used, or the self-check fails.
    """
    from vflowopt_search.search_space import SearchSpace

    space = SearchSpace.load(job.recipe.space)
    shown.phase("reading calibration samples")
    calibration = chosen_samples(job)
    if calibration.note:
        shown.phase(f"note: {calibration.note}")
    shown.phase(f"loading {job.source.name}")
    from vflowopt_search.reference.cache import default_cache

    quiet_progress_bars()
    loaded = load(job.source)
    if job.self_check:
        shown.phase("checking that pruning is right on this model")
        check_once(*loaded, job.cache or default_cache())
    shown.phase("measuring the whole model", len(calibration))
    objective = objective_on(job, loaded, calibration, shown)
    if objective.calibration.refused:
        shown.phase(f"note: {objective.calibration.note}")
    return Prepared(loaded, objective.calibration, objective, space)


def objective_on(
    job: Job, loaded: tuple[Any, Any], samples: CalibrationSet, shown: Display
) -> Objective:
    """What measures strategies on these samples, as the job says.

    Raises:
        VFlowOptError: samples or model cannot be used.
    """
    from vflowopt_search.objective import build_objective
    from vflowopt_search.reference.cache import default_cache

    return build_objective(
        *loaded,
        samples,
        metric=job.recipe.metric,
        batch_size=job.batch_size,
        cache=job.cache or default_cache(),
        cache_gb=job.cache_gb,
        progress=shown.step,
        name=job.source.name,
        strict=job.data.strict,
    )


def chosen_samples(job: Job, *, skip: int = 0) -> CalibrationSet:
    """The calibration samples, chosen by the recipe's seed.

    Args:
        job: names the data and how many samples.
        skip: pass over so many: those that the search sees.

    Raises:
        CalibrationError: they cannot be read, or there are none.
    """
    from vflowopt_search.calibration.choice import from_dataset, load_calibration
    from vflowopt_search.calibration.rows import Columns

    recipe, data = job.recipe, job.data
    if recipe.calibration == SHIPPED:
        data.refuse_for_shipped("the calibration samples", "--calibration")
        from vflowopt_search.testbed.data import calibration_dataset

        rows = calibration_dataset(skip + recipe.samples, recipe.seed)
        rows = rows.select(range(skip, len(rows)))
        return from_dataset(rows, name=SHIPPED, num_samples=recipe.samples, seed=recipe.seed)
    return load_calibration(
        recipe.calibration,
        split=data.split,
        columns=Columns(**data.columns, turns=data.turns),
        num_samples=recipe.samples,
        seed=recipe.seed,
        prompt=data.prompt,
        frames=data.frames,
        fps=data.fps,
        skip=skip,
        strict=data.strict,
    )


def held_out_half(job: Job, seen: CalibrationSet) -> CalibrationSet | None:
    """As many other samples, none of which shows an image that the search saw; None: none left.

    Raises:
        CalibrationError: too many of them cannot be read, or one where all must.
    """
    from vflowopt_search.calibration.samples import without_images_of

    try:
        others = chosen_samples(job, skip=len(seen) + seen.refused)
    except NothingLeftError:
        return None
    return without_images_of(others, seen)


def held_out_questions() -> tuple[Sample, ...]:
    """Labelled questions about images that the shipped model's search does not see."""
    from vflowopt_search.calibration.choice import from_dataset
    from vflowopt_search.calibration.rows import Columns
    from vflowopt_search.testbed.data import evaluation_dataset

    columns = Columns(prompt="question", answer="answer", group="type")
    rows = evaluation_dataset(HELD_OUT_QUESTIONS)
    chosen = from_dataset(rows, name=SHIPPED, columns=columns, num_samples=HELD_OUT_QUESTIONS)
    return chosen.samples
