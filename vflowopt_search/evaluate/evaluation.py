"""Accuracy with and without pruning on the same labelled samples: what is kept, and how surely."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from vflowopt_search.calibration.refusals import Refusals
from vflowopt_search.calibration.samples import Sample
from vflowopt_search.calibration.shared_images import image_clusters
from vflowopt_search.documents import digest, replace_atomically
from vflowopt_search.errors import CalibrationError, EvaluationError
from vflowopt_search.evaluate.answers import Asking, ask
from vflowopt_search.evaluate.ledger import Ledger
from vflowopt_search.evaluate.metrics import metric_named, option_labelled
from vflowopt_search.evaluate.queue import Answer, Strategies, content_of
from vflowopt_search.evaluate.statistics import Interval, PairedTest, paired_test, ratio_interval
from vflowopt_search.evaluate.words import normalised
from vflowopt_search.reference.encoder import Progress

FORMAT: Final = "vflowopt-evaluation/1"
UNPRUNED = "unpruned"
FEW = 10
"""Groups of fewer samples are listed, but never called the worst."""


@dataclass(frozen=True)
class Group:
    """The samples of one kind, under one strategy.

    Attributes:
        name: value of the column that groups.
        samples: how many there are.
        unpruned: mean score of the unpruned model.
        accuracy: mean score with the strategy.
        kept: the second over the first with its interval; None where the first is 0.
    """

    name: str
    samples: int
    unpruned: float
    accuracy: float
    kept: Interval | None


@dataclass(frozen=True)
class Result:
    """What one strategy does to the answers.

    Attributes:
        name: of the strategy.
        strategy_sha256: fingerprint of what it prunes, shortened.
        retained: share of visual tokens alive, mean over layers and samples, as it happened.
        accuracy: mean score.
        kept: accuracy over that of the unpruned model with its interval; None where that is 0.
        test: whether the scores differ from the unpruned model's.
        agreement: share of answers that are those of the unpruned model.
        speed: answers per second over those of the unpruned model on the same batches, without the
            vision encoder; None where they were not timed together.
        groups: by name.
        worst_group: the one of `FEW` samples or more that keeps least; None without groups.
    """

    name: str
    strategy_sha256: str
    retained: float | None
    accuracy: float
    kept: Interval | None
    test: PairedTest
    agreement: float
    speed: float | None
    groups: tuple[Group, ...]
    worst_group: str | None


@dataclass(frozen=True)
class Evaluation:
    """Strategies and the unpruned model on the same samples.

    Attributes:
        metric: how answers were scored.
        samples: how many were asked.
        images: how many different ones they show, those that samples show together counted once;
            the unit of intervals and tests.
        unpruned: mean score of the unpruned model.
        results: of each strategy.
        seed: of resampling.
        answers: name (`unpruned` for the unpruned model) to all answers; not in the file.
        scores: the same, for scores.
        refusals: number of a sample to why the processor did not take it; the file has their ids.
    """

    metric: str
    samples: int
    images: int
    unpruned: float
    results: tuple[Result, ...]
    seed: int
    answers: Mapping[str, Sequence[Answer]]
    scores: Mapping[str, Sequence[float]]
    refusals: Refusals

    def to_plain(self) -> dict[str, Any]:
        """What the file says of it."""
        told = ("metric", "samples", "images", "unpruned", "seed")
        return {
            **{name: getattr(self, name) for name in told},
            "refused": [refusal.id for refusal in self.refusals.values()],
            "strategies": [asdict(result) for result in self.results],
        }


def evaluate(
    asking: Asking,
    samples: Sequence[Sample],
    strategies: Strategies,
    *,
    metric: str = "exact_match",
    ledger: Ledger | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Ask the unpruned model and every strategy the same questions, and compare.

    A sample that the processor does not take is asked of none (see `Asking.strict`).

    Args:
        asking: the model and how it is asked.
        samples: labelled samples; results are broken down by their groups, if any.
        strategies: name to strategy.
        metric: one of `metrics.METRICS`.
        ledger: keeps the answers, so that a second call asks only what is missing.
        seed: of bootstrap and permutations.
        progress: called with (answers known, answers in total).

    Raises:
        CalibrationError: there are no samples, one has no answer to compare with, or too many are
            not taken by the processor.
        EvaluationError: no metric has this name, a label names no option, or the ledger cannot
            be written.
        ModelError: the model cannot be pruned.
    """
    check_labels(samples, metric)
    everyone = {UNPRUNED: None, **strategies}
    given = ask(asking, samples, everyone, ledger or Ledger(), progress)
    samples, answers = given.samples, given.answers
    scores = {name: scored(metric, samples, said) for name, said in answers.items()}
    clusters = image_clusters(samples)
    compare = _Comparison(samples, clusters, answers, scores, seed)
    return Evaluation(
        metric=metric,
        samples=len(samples),
        images=len(set(clusters)),
        unpruned=_mean(scores[UNPRUNED]),
        results=tuple(
            compare.result(name, digest(content_of(strategy)))
            for name, strategy in strategies.items()
        ),
        seed=seed,
        answers=answers,
        scores=scores,
        refusals=given.refusals,
    )


def is_labelled(sample: Sample) -> bool:
    """Whether a sample has an answer with something in it."""
    return any(truth.strip() for truth in sample.truths)


def check_labels(samples: Sequence[Sample], metric: str) -> None:
    """Refuse samples that cannot be scored by a metric, before anything is asked.

    Raises:
        CalibrationError: there are no samples, or one has no answer.
        EvaluationError: no metric has this name, or a label names no option.
    """
    metric_named(metric)
    if not samples:
        raise CalibrationError("there are no samples to ask; give at least one")
    unlabelled = [sample.id for sample in samples if not is_labelled(sample)]
    if len(unlabelled) == len(samples):
        raise CalibrationError(
            "no sample has an answer to compare with; name the column that holds the answers with "
            "--columns answer=NAME"
        )
    if unlabelled:
        raise CalibrationError(
            f"{len(unlabelled)} of {len(samples)} samples lack an answer to compare with (the "
            f"first: {unlabelled[0]}); give them one, or leave them out"
        )
    for sample in samples if metric == "multiple_choice" else ():
        if not any(option_labelled(truth, sample.options) for truth in sample.truths):
            raise EvaluationError(
                f"the answer {sample.truths[0]!r} of sample {sample.id} is none of its options "
                f"{list(sample.options)}; name the columns with --columns answer=...,options=..., "
                "or use another metric"
            )


def scored(metric: str, samples: Sequence[Sample], answers: Sequence[Answer]) -> list[float]:
    """Score of each answer, 0..1."""
    score = metric_named(metric)
    return [
        score(answer.text, sample.truths, sample.options)
        for sample, answer in zip(samples, answers, strict=True)
    ]


def content_of_file(evaluation: Evaluation, about: Mapping[str, Any]) -> dict[str, Any]:
    """What `evaluation.json` holds: what was measured, and on what and how."""
    return {"format": FORMAT, **about, **evaluation.to_plain()}


def write_plain(path: Path, content: Mapping[str, Any]) -> None:
    """Write plain values as JSON, whole or not at all.

    Raises:
        EvaluationError: the file cannot be written.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False, default=asdict) + "\n"
    try:
        replace_atomically(path, text)
    except OSError as error:
        raise EvaluationError(
            f"{path} cannot be written ({error.strerror}); make room, or choose another folder "
            "with --output"
        ) from error


@dataclass(frozen=True)
class _Comparison:
    """Everything that was measured, ready for one result after the other."""

    samples: Sequence[Sample]
    clusters: Sequence[int]
    answers: Mapping[str, Sequence[Answer]]
    scores: Mapping[str, Sequence[float]]
    seed: int

    def result(self, name: str, strategy_sha256: str) -> Result:
        """One strategy beside the unpruned model."""
        whole, pruned = self.scores[UNPRUNED], self.scores[name]
        groups = self._groups(name)
        telling = [group for group in groups if group.kept is not None and group.samples >= FEW]
        worst = min(telling, key=lambda g: g.kept.value if g.kept else 1.0, default=None)
        return Result(
            name=name,
            strategy_sha256=strategy_sha256,
            retained=_mean_or_none([a.retained for a in self.answers[name]]),
            accuracy=_mean(pruned),
            kept=ratio_interval(whole, pruned, self.clusters, self.seed),
            test=paired_test(whole, pruned, self.clusters, self.seed),
            agreement=self._agreement(name),
            speed=self._speed(name),
            groups=groups,
            worst_group=worst.name if worst is not None and len(groups) > 1 else None,
        )

    def _groups(self, name: str) -> tuple[Group, ...]:
        labels = sorted({s.group for s in self.samples if s.group is not None})
        return tuple(self._group(label, name) for label in labels)

    def _group(self, label: str, name: str) -> Group:
        mine = [i for i, sample in enumerate(self.samples) if sample.group == label]
        whole = [self.scores[UNPRUNED][i] for i in mine]
        pruned = [self.scores[name][i] for i in mine]
        kept = ratio_interval(whole, pruned, [self.clusters[i] for i in mine], self.seed)
        return Group(label, len(mine), _mean(whole), _mean(pruned), kept)

    def _agreement(self, name: str) -> float:
        pairs = zip(self.answers[UNPRUNED], self.answers[name], strict=True)
        return _mean([float(normalised(one.text) == normalised(two.text)) for one, two in pairs])

    def _speed(self, name: str) -> float | None:
        """Median over the samples; a batch that met a busy or cold machine decides nothing."""
        pairs = zip(self.answers[UNPRUNED], self.answers[name], strict=True)
        ratios = [one.seconds / two.seconds for one, two in pairs if one.batch == two.batch]
        return median(ratios) if ratios else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _mean_or_none(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _mean(known) if known else None
