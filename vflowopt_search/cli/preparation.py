"""What a search needs before its first trial: model, samples, objective, bound space."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from vflowopt_search.cli.checking import CHECKING, check_once
from vflowopt_search.cli.console import quiet_progress_bars
from vflowopt_search.cli.job import Job
from vflowopt_search.cli.progress import UNPRUNED, phased
from vflowopt_search.model_source import SHIPPED, load

if TYPE_CHECKING:
    from vflowopt_search.calibration.samples import CalibrationSet, Sample
    from vflowopt_search.cli.progress import Display
    from vflowopt_search.evaluate.kept import KeptObjective
    from vflowopt_search.evaluate.ledger import Ledger
    from vflowopt_search.objective import Objective
    from vflowopt_search.reference.encoder import Progress
    from vflowopt_search.search_space import SearchSpace

HELD_OUT_QUESTIONS = 1200


@dataclass(frozen=True)
class Prepared:
    """Everything loaded and measured that no trial changes.

    Attributes:
        loaded: model and processor.
        chosen: the samples that the search was to see.
        calibration: those of them that the processor takes.
        objective: measures strategies on them.
        space: what is searched.
    """

    loaded: tuple[Any, Any]
    chosen: CalibrationSet
    calibration: CalibrationSet
    objective: Objective
    space: SearchSpace

    def kept(self, ledger: Ledger) -> KeptObjective:
        """The objective, for what is measured once and kept in a ledger."""
        from vflowopt_search.evaluate.kept import KeptObjective

        return KeptObjective(self.objective, self.calibration.samples, ledger)


def prepare(
    job: Job, shown: Display, check: Callable[[CalibrationSet], None] | None = None
) -> Prepared:
    """Load and measure what no trial changes; wrong files are refused before the model is loaded.

    Args:
        job: what is asked for.
        shown: where progress goes.
        check: told the chosen samples; refuses them before the model is loaded.

    Raises:
        VFlowOptError: the space, the samples or the model cannot be used, or the self-check fails.
    """
    from vflowopt_search.search_space import SearchSpace

    space = SearchSpace.load(job.recipe.space)
    shown.phase("reading calibration samples")
    chosen = chosen_samples(job)
    if chosen.note:
        shown.phase(f"note: {chosen.note}")
    if check is not None:
        check(chosen)
    shown.phase(f"loading {job.source.name}")
    from vflowopt_search.reference.cache import default_cache

    quiet_progress_bars()
    loaded = load(job.source)
    if job.self_check:
        check_once(*loaded, job.cache or default_cache(), partial(shown.phase, CHECKING))
    objective = objective_on(job, loaded, chosen, phased(shown, UNPRUNED))
    if objective.calibration.refused:
        shown.phase(f"note: {objective.calibration.note}")
    return Prepared(loaded, chosen, objective.calibration, objective, space)


def objective_on(
    job: Job, loaded: tuple[Any, Any], samples: CalibrationSet, progress: Progress
) -> Objective:
    """What measures strategies on these samples, as the job says; `progress` if it must compute.

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
        progress=progress,
        name=job.source.name,
        strict=job.data.strict,
    )


def chosen_samples(job: Job) -> CalibrationSet:
    """The calibration samples that the search sees, chosen by the recipe's seed.

    Raises:
        CalibrationError: they cannot be read, or there are none.
    """
    if job.recipe.calibration == SHIPPED:
        return _shipped_samples(job)
    return _own_samples(job, job.recipe.samples, halve=job.halve)


def held_out_half(job: Job, seen: CalibrationSet) -> CalibrationSet | None:
    """As many other samples, none of which shows an image of those seen; None: none left.

    Args:
        job: names the data and how many samples.
        seen: what `chosen_samples` gave, with those that the processor did not take.

    Raises:
        CalibrationError: too many of them cannot be read, or one where all must.
    """
    from vflowopt_search.calibration.shared_images import without_images_of

    asked = job.recipe.samples
    if job.recipe.calibration == SHIPPED:
        others = _shipped_samples(job, skip=asked)
    else:
        others = _own_samples(job, 2 * asked)  # those seen are among them
    left = without_images_of(others, seen)
    return None if left is None else replace(left, asked=0 if seen.halved else asked)


def _shipped_samples(job: Job, *, skip: int = 0) -> CalibrationSet:
    from vflowopt_search.calibration.choice import from_dataset
    from vflowopt_search.testbed.data import calibration_dataset

    job.data.refuse_for_shipped("the calibration samples", "--calibration")
    samples, seed = job.recipe.samples, job.recipe.seed
    rows = calibration_dataset(skip + samples, seed)
    rows = rows.select(range(skip, len(rows)))
    return from_dataset(rows, name=SHIPPED, num_samples=samples, seed=seed)


def _own_samples(job: Job, num_samples: int, *, halve: bool = False) -> CalibrationSet:
    from vflowopt_search.calibration.choice import load_calibration
    from vflowopt_search.calibration.rows import Columns

    data = job.data
    return load_calibration(
        job.recipe.calibration,
        split=data.split,
        columns=Columns(**data.columns, turns=data.turns),
        num_samples=num_samples,
        seed=job.recipe.seed,
        prompt=data.prompt,
        frames=data.frames,
        fps=data.fps,
        strict=data.strict,
        halve=halve,
    )


def held_out_questions() -> tuple[Sample, ...]:
    """Labelled questions about images that the shipped model's search does not see."""
    from vflowopt_search.calibration.choice import from_dataset
    from vflowopt_search.calibration.rows import Columns
    from vflowopt_search.testbed.data import evaluation_dataset

    columns = Columns(prompt="question", answer="answer", group="type")
    rows = evaluation_dataset(HELD_OUT_QUESTIONS)
    chosen = from_dataset(rows, name=SHIPPED, columns=columns, num_samples=HELD_OUT_QUESTIONS)
    return chosen.samples
