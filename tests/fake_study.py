"""A study without a model: an objective in closed form, and a process that can be killed in it.

`python -m tests.fake_study JOURNAL TRIALS DELAY` runs one; DELAY seconds pass in each batch.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import numpy as np
from optuna import Study
from optuna.storages import InMemoryStorage

from vflowopt_search import trials
from vflowopt_search.outcome import StudyOutcome
from vflowopt_search.search_space import BoundSpace, ModelFacts, SearchSpace
from vflowopt_search.settings import StudySettings
from vflowopt_search.strategy import ModelIdentity, PixelScale, Strategy
from vflowopt_search.study import run_study

FACTS = ModelFacts(
    identity=ModelIdentity(
        model_type="llava_onevision", decoder_layers=8, vision_layers=6, hidden_size=128
    ),
    pixels=PixelScale(mean=(0.5,), std=(0.5,)),
    vision_layers_available=(0, 1, 2, 3, 4, 5),
)
CONTEXT = {
    "model": "fake",
    "calibration": "fake-samples",
    "calibration_sha256": "c0ffee",
    "space_sha256": "beef",
}

_PLAIN = {
    "vision_depth": 1.0,
    "context_threshold": 0.0,
    "entropy_weight": 0.0,
    "recycling": False,
    "positions": "original",
    "separators": "drop",
}
# Its own, so that no test here depends on what the shipped spaces search.
SPACE = SearchSpace.model_validate(
    {
        "format": "vflowopt-space/1",
        "description": "One to three stages, with every kind of parameter.",
        "stages": {
            "count": {"low": 1, "high": 3},
            "depths": [0, {"low": 0.0, "high": 1.0}, {"low": 0.0, "high": 1.0}],
            "keep": {"low": 0.05, "high": 1.0},
        },
        "importance": {
            "score": "received_attention",
            "vision_depth": {"low": 0.0, "high": 1.0},
            "context_threshold": {"low": 0.0, "high": 50.0},
            "entropy_weight": {"low": -1.0, "high": 1.0},
        },
        "recycling": {
            "enabled": {"choices": [True, False]},
            "cell": {"low": 2.0, "high": 24.0, "log": True},
        },
        "positions": {"choices": ["original", "packed"]},
        "separators": {"choices": ["keep", "drop"]},
        "textbook": {
            "attention-once": {**_PLAIN, "depths": [0]},
            "published-like": {
                **_PLAIN,
                "depths": [0, "1/3", "2/3"],
                "keep": [0.75, 0.5],
                "recycling": True,
                "recycling_cell": 11.8,
            },
            "pyramid": {**_PLAIN, "depths": [0, "1/2"], "keep": [0.5]},
        },
    }
)


@dataclass
class FakeObjective:
    """Best at vision layer 4, one stage, no entropy; samples differ in how hard they are."""

    num_samples: int = 24
    metric: str = "last_token_cosine"
    delay: float = 0.0
    measured: int = field(default=0)
    together: list[int] = field(default_factory=list)

    def measure(self, strategy: Strategy, indices: Sequence[int]) -> list[float]:
        time.sleep(self.delay)
        self.measured += len(indices)
        layer = strategy.importance.vision_layer or 0
        loss = 0.2 * abs(layer - 4) + 0.1 * len(strategy.stages)
        loss += 0.5 * abs(strategy.importance.entropy_weight)
        seed = crc32(repr((strategy.importance, strategy.stages)).encode())
        noise = np.random.default_rng(seed).normal(0, 0.01, self.num_samples)
        return [0.05 + loss * (1 + sample / 10) + abs(float(noise[sample])) for sample in indices]

    def measure_many(
        self, strategies: Sequence[Strategy], indices: Sequence[int]
    ) -> list[list[float]]:
        self.together.append(len(strategies))
        return [self.measure(strategy, indices) for strategy in strategies]


@dataclass
class Disturbed(FakeObjective):
    """In its third call something happens that other workers do."""

    happens: Callable[[], object] = field(default=lambda: None, kw_only=True)

    def measure_many(
        self, strategies: Sequence[Strategy], indices: Sequence[int]
    ) -> list[list[float]]:
        if len(self.together) == 2:
            self.happens()
        return super().measure_many(strategies, indices)


def fake_space() -> BoundSpace:
    return SPACE.bind(FACTS)


def fake_run(
    objective: Any = None,
    storage: Any = None,
    total: int = 16,
    context: dict[str, str] | None = None,
    **settings: Any,
) -> StudyOutcome:
    on_trial = settings.pop("on_trial", None)
    return run_study(
        objective or FakeObjective(),
        fake_space(),
        StudySettings(name="fake", retain=0.25, trials=total, **settings),
        storage=InMemoryStorage() if storage is None else storage,
        context=CONTEXT if context is None else context,
        on_trial=on_trial,
    )


def story(study: Study) -> list[tuple[Any, ...]]:
    """All of the trials that count, but their numbers and times: equal for equal studies."""
    done = sorted(filter(trials.counts, study.trials), key=lambda t: t.user_attrs[trials.SLOT])
    return [
        (
            trial.user_attrs[trials.SLOT],
            trials.outcome_of(trial),
            trial.params,
            trial.value,
            trials.per_sample(trial),
            trial.user_attrs.get(trials.STRATEGY),
            trial.user_attrs.get(trials.TEXTBOOK),
            trial.user_attrs.get(trials.FAILURE),
        )
        for trial in done
    ]


if __name__ == "__main__":
    journal, num_trials, seconds, *size = sys.argv[1:]
    together = int(size[0]) if size else 1
    delayed = FakeObjective(delay=float(seconds))
    fake_run(delayed, journal, int(num_trials), trials_per_batch=together)
