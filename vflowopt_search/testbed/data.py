"""Calibration and evaluation sets of the testbed, made on the spot from a seed.

Neither shares a scene with training or with the other, and their digits are drawings that
training never showed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from vflowopt_search.testbed.curriculum import FULL_STYLE
from vflowopt_search.testbed.digits import Split
from vflowopt_search.testbed.questions import Question, ask
from vflowopt_search.testbed.scenes import Scene, make_scene

if TYPE_CHECKING:
    from datasets import Dataset

QUESTIONS_PER_IMAGE = 4
_CALIBRATION, _EVALUATION = 101, 202  # first number of every seed, so that the sets are disjoint


@dataclass(frozen=True)
class AskedScene:
    """A scene and some questions about it."""

    scene: Scene
    questions: tuple[Question, ...]

    @property
    def image(self) -> Image.Image:
        """The picture, 112x112 RGB."""
        return Image.fromarray(self.scene.image)


def calibration_scenes(num_samples: int, seed: int) -> Iterator[AskedScene]:
    """Scenes with one question each, digits of the validation split."""
    for index in range(num_samples):
        yield _asked_scene([_CALIBRATION, seed, index], "validation", num_questions=1)


def evaluation_scenes(num_questions: int, seed: int) -> Iterator[AskedScene]:
    """Scenes with four questions each (the last may have fewer), digits of the test split."""
    left, index = num_questions, 0
    while left > 0:
        questions = min(left, QUESTIONS_PER_IMAGE)
        yield (asked := _asked_scene([_EVALUATION, seed, index], "test", questions))
        left -= len(asked.questions)
        index += 1


def _asked_scene(seeds: list[int], split: Split, num_questions: int) -> AskedScene:
    rng = np.random.default_rng(seeds)
    scene = make_scene(rng, FULL_STYLE, split)
    return AskedScene(scene, tuple(ask(rng, scene, num_questions)))


def calibration_dataset(num_samples: int = 256, seed: int = 0) -> Dataset:
    """Unlabelled samples to search with: columns `id`, `image`, `question`."""
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    scenes = list(calibration_scenes(num_samples, seed))
    columns = {
        "id": [f"calibration-{seed}-{index}" for index in range(num_samples)],
        "image": [asked.image for asked in scenes],
        "question": [asked.questions[0].text for asked in scenes],
    }
    features = Features(
        {"id": Value("string"), "image": ImageFeature(), "question": Value("string")}
    )
    return Dataset.from_dict(columns, features=features)


def evaluation_dataset(num_questions: int = 1200, seed: int = 0) -> Dataset:
    """Labelled questions: columns `id`, `image_id`, `image`, `question`, `answer`, `type`."""
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    scenes = list(evaluation_scenes(num_questions, seed))
    rows = [(number, asked, q) for number, asked in enumerate(scenes) for q in asked.questions]
    columns = {
        "id": [f"evaluation-{seed}-{index}" for index in range(len(rows))],
        "image_id": [f"evaluation-{seed}-image-{number}" for number, _, _ in rows],
        "image": [asked.image for _, asked, _ in rows],
        "question": [q.text for _, _, q in rows],
        "answer": [q.answer for _, _, q in rows],
        "type": [q.kind for _, _, q in rows],
    }
    text = {name: Value("string") for name in columns if name != "image"}
    return Dataset.from_dict(columns, features=Features({**text, "image": ImageFeature()}))
