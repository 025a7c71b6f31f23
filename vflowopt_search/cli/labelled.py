"""Labelled data for commands that measure accuracy: the shipped questions, or data of one's own."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from vflowopt_search.cli import preparation
from vflowopt_search.cli.job import DataOptions
from vflowopt_search.model_source import SHIPPED

if TYPE_CHECKING:
    from vflowopt_search.calibration.samples import CalibrationSet

USUAL_SAMPLES = 1000


@dataclass(frozen=True)
class LabelledData:
    """Which labelled samples, and what is added to their questions.

    Args:
        source: `testbed`, a data set's name, a folder or a file.
        options: how it is read.
        samples: how many; None is 1000, or all of the shipped ones.
        by: the column by whose values results are broken down; None guesses.
        instruction: added below every question.
        lists_options: whether the options of a multiple-choice question are added as well.
        seed: of the choice.
    """

    source: str
    options: DataOptions = field(default_factory=DataOptions)
    samples: int | None = None
    by: str | None = None
    instruction: str | None = None
    lists_options: bool = False
    seed: int = 0


def labelled_samples(data: LabelledData) -> CalibrationSet:
    """The samples, as they will be asked.

    Raises:
        CalibrationError: they cannot be read, or the column to tell apart by is not there.
    """
    from vflowopt_search.calibration.samples import fingerprint
    from vflowopt_search.evaluate.wording import with_lines, with_options

    chosen = _shipped(data) if data.source == SHIPPED else _own(data)
    chosen = with_answers(chosen, strict=data.options.strict)
    samples = chosen.samples
    if data.lists_options:
        samples = tuple(with_options(sample) for sample in samples)
    if data.instruction:
        samples = tuple(with_lines(sample, [data.instruction]) for sample in samples)
    return replace(chosen, samples=samples, sha256=fingerprint(samples))


def with_answers(chosen: CalibrationSet, *, strict: bool) -> CalibrationSet:
    """The samples that have an answer; the others are left out and named, as rows that fail are.

    Where none has one they all stay: then their column was not found, which is told elsewhere.

    Raises:
        CalibrationError: more than a fifth have none or, strictly, one.
    """
    from vflowopt_search.calibration.refusals import Refusal, require_few, without
    from vflowopt_search.errors import CalibrationError
    from vflowopt_search.evaluate.evaluation import is_labelled

    refusals = {
        number: Refusal(sample.id, "it has no answer to compare with")
        for number, sample in enumerate(chosen.samples)
        if not is_labelled(sample)
    }
    if len(refusals) == len(chosen):
        return chosen
    if refusals and strict:
        first = next(iter(refusals.values()))
        raise CalibrationError(
            f"sample {first.id} of {chosen.name} has no answer to compare with, and strict is to "
            "stop at the first; give it one, or leave --strict out"
        )
    require_few(refusals, len(chosen))
    return without(chosen, refusals)


def _shipped(data: LabelledData) -> CalibrationSet:
    from vflowopt_search.calibration.choice import from_dataset
    from vflowopt_search.calibration.rows import Columns
    from vflowopt_search.testbed.data import evaluation_dataset

    data.options.refuse_for_shipped("the questions", "--data")
    count = data.samples or preparation.HELD_OUT_QUESTIONS
    columns = Columns(prompt="question", answer="answer", group=data.by or "type")
    rows = evaluation_dataset(count)
    return from_dataset(rows, name=SHIPPED, columns=columns, num_samples=count, seed=data.seed)


def _own(data: LabelledData) -> CalibrationSet:
    from vflowopt_search.calibration.choice import load_calibration
    from vflowopt_search.calibration.rows import Columns

    options = data.options
    named = options.columns if data.by is None else options.columns | {"group": data.by}
    return load_calibration(
        data.source,
        split=options.split,
        columns=Columns(**named, turns=options.turns),
        num_samples=data.samples or USUAL_SAMPLES,
        seed=data.seed,
        prompt=options.prompt,
        frames=options.frames,
        fps=options.fps,
        strict=options.strict,
    )
