"""Does the divergence predict accuracy? Every divergence and the accuracy of many strategies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import fmean
from typing import Any, Final

import numpy as np
import torch

from vflowopt_search.calibration.refusals import Refusals
from vflowopt_search.calibration.samples import Sample
from vflowopt_search.calibration.shared_images import image_clusters
from vflowopt_search.deploy import attached_engine
from vflowopt_search.divergence import ANSWER_METRICS, METRICS, Readout, divergence
from vflowopt_search.errors import StudyError
from vflowopt_search.evaluate.answers import Asking, ask
from vflowopt_search.evaluate.evaluation import UNPRUNED, check_labels, scored
from vflowopt_search.evaluate.ledger import Ledger
from vflowopt_search.evaluate.prediction import Prediction, predictions
from vflowopt_search.evaluate.queue import content_of, item_of
from vflowopt_search.evaluate.spread import Chosen
from vflowopt_search.objective import Objective
from vflowopt_search.reference.along_answer import answer_divergences, decoded, through_head
from vflowopt_search.reference.encoder import Progress, shifted
from vflowopt_search.reference.halving import in_halves
from vflowopt_search.strategy import Strategy

FORMAT: Final = "vflowopt-validation/1"
EVERY_METRIC = (*METRICS, *ANSWER_METRICS)
DEFAULT = "last_token_cosine"
MODEL_METRIC = "answer_total_variation"
"""An objective with this metric has all that the others need."""


@dataclass(frozen=True)
class Point:
    """One strategy: its divergences, mean over all calibration samples, and its accuracy."""

    name: str
    origin: str
    divergence: dict[str, float]
    accuracy: float
    kept: float | None


@dataclass(frozen=True)
class Validation:
    """How well each divergence predicts accuracy.

    Attributes:
        metric: how answers were scored.
        calibration_samples: on which divergences were measured.
        questions: on which accuracy was measured, about other images.
        unpruned: accuracy of the unpruned model.
        points: the strategies.
        predictions: each divergence at each number of calibration samples; empty where there is
            nothing to predict, for the unpruned model is never right or no strategy beats another.
        seed: of all draws.
        refusals: number of a question to why the processor did not take it; the file has their ids.
    """

    metric: str
    calibration_samples: int
    questions: int
    unpruned: float
    points: tuple[Point, ...]
    predictions: tuple[Prediction, ...]
    seed: int
    refusals: Refusals

    def to_plain(self) -> dict[str, Any]:
        """What the file says of it."""
        refused = [refusal.id for refusal in self.refusals.values()]
        plain = {name: value for name, value in asdict(self).items() if name != "refusals"}
        return plain | {"refused": refused}


def validate(
    asking: Asking,
    objective: Objective,
    calibration: Sequence[Sample],
    questions: Sequence[Sample],
    chosen: Sequence[Chosen],
    *,
    metric: str,
    divergences: Ledger,
    answers: Ledger,
    seed: int,
    on_divergence: Progress | None = None,
    on_answer: Progress | None = None,
) -> Validation:
    """Measure every divergence and the accuracy of each strategy, and compare the two.

    Args:
        asking: the model and how it is asked.
        objective: of the calibration samples, by `MODEL_METRIC`.
        calibration: the samples that divergences are measured on.
        questions: labelled samples about other images.
        chosen: the strategies.
        metric: how answers are scored.
        divergences: keeps what was measured.
        answers: keeps what was answered.
        seed: of all draws.
        on_divergence: called with (samples measured, in total).
        on_answer: called with (answers known, in total).

    Raises:
        VFlowOptError: labels, model or strategies cannot be used.
    """
    check_labels(questions, metric)
    steps = [shifted(on_divergence, n, len(chosen)) for n in range(len(chosen))]
    measured = [
        _measured(objective, calibration, one.strategy, divergences, step)
        for one, step in zip(chosen, steps, strict=True)
    ]
    everyone: dict[str, Strategy | None] = {UNPRUNED: None} | {c.name: c.strategy for c in chosen}
    given = ask(asking, questions, everyone, answers, on_answer)
    scores = {name: scored(metric, given.samples, each) for name, each in given.answers.items()}
    accuracy = {name: fmean(each) for name, each in scores.items()}
    whole = accuracy[UNPRUNED]
    tables = {m: np.array([[row[m] for row in rows] for rows in measured]) for m in EVERY_METRIC}
    scores_KN = np.array([scores[one.name] for one in chosen])
    clusters = image_clusters(given.samples)
    told = whole > 0 and len({accuracy[one.name] for one in chosen}) > 1
    found = predictions(tables, scores_KN, clusters, against=DEFAULT, seed=seed) if told else []
    return Validation(
        metric=metric,
        calibration_samples=len(calibration),
        questions=len(given.samples),
        unpruned=whole,
        points=tuple(
            _point(one, rows, accuracy[one.name], whole)
            for one, rows in zip(chosen, measured, strict=True)
        ),
        predictions=tuple(found),
        seed=seed,
        refusals=given.refusals,
    )


def _measured(
    objective: Objective,
    samples: Sequence[Sample],
    strategy: Strategy,
    ledger: Ledger,
    progress: Progress | None,
) -> list[dict[str, float]]:
    """Every divergence of each sample under one strategy; what the ledger knows is not measured."""
    heading = ledger.heading(
        {"measured": "divergences", **objective.fingerprint, "strategy": content_of(strategy)}
    )
    items = [item_of(sample) for sample in samples]
    missing = [i for i, item in enumerate(items) if ledger.known(heading, item) is None]
    known = len(items) - len(missing)
    measure = partial(every_divergence, objective, strategy)
    for rows, found in in_halves(
        missing, objective.batch_size, measure, objective.room, number=int
    ):
        ledger.add(heading, {items[i]: one for i, one in zip(rows, found, strict=True)})
        known += len(rows)
        if progress is not None:
            progress(known, len(items))
    return [ledger.known(heading, item) or {} for item in items]


def every_divergence(
    objective: Objective, strategy: Strategy, rows: Sequence[int]
) -> list[dict[str, float]]:
    """Each of `EVERY_METRIC` for some calibration samples, all from one run of the pruned model.

    Raises:
        DivergenceError: one of them is not finite.
        StudyError: the objective did not follow answers.
    """
    if objective.answers is None:
        raise StudyError(
            f"the objective's metric is {objective.metric!r}; make it {MODEL_METRIC!r}"
        )
    adapter, device = objective.adapter, objective.adapter.backbone.device
    with attached_engine(adapter.model, strategy) as engine:
        inputs = objective.source.feed(engine, rows)
        said = objective.answers.tokens(rows)
        _, hidden_BLD, along = decoded(adapter, inputs, said, layers=True)
    pruned = Readout(hidden_BLD, through_head(adapter, hidden_BLD[:, -1]))
    unpruned = objective.reference.rows(rows, device)
    columns = {name: divergence(name, unpruned, pruned) for name in METRICS}
    reference = objective.answers.rows(rows, device)
    columns |= answer_divergences(list(ANSWER_METRICS), adapter, reference, along)
    table_BM = torch.stack(list(columns.values()), dim=1).tolist()
    return [dict(zip(columns, row, strict=True)) for row in table_BM]


def _point(
    chosen: Chosen, rows: Sequence[dict[str, float]], accuracy: float, whole: float
) -> Point:
    """What one strategy showed: means over its calibration samples, and its accuracy."""
    return Point(
        name=chosen.name,
        origin=chosen.origin,
        divergence={m: fmean(row[m] for row in rows) for m in EVERY_METRIC},
        accuracy=accuracy,
        kept=accuracy / whole if whole else None,
    )
