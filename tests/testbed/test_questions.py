"""Every answer is checked against the scene by rules written a second time, the other way round."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest

from vflowopt_search.testbed.curriculum import FULL_STYLE
from vflowopt_search.testbed.data import calibration_scenes, evaluation_scenes
from vflowopt_search.testbed.questions import EXTREME_MARGIN, KINDS, Question, ask
from vflowopt_search.testbed.scenes import SceneObject, make_scene
from vflowopt_search.testbed.vocabulary import UNKNOWN, VOCABULARY, word_ids

Answers = Callable[[list[SceneObject], re.Match[str]], set[str]]


def _outermost(objects: list[SceneObject], match: re.Match[str]) -> set[str]:
    axis = {"leftmost": 0, "topmost": 1}[match[1]]
    edge = min(o.centre[axis] for o in objects)
    return {
        f"{o.colour} {o.shape}" for o in objects if o.centre[axis] < edge + EXTREME_MARGIN - 1e-6
    }


RULES: list[tuple[str, Answers]] = [
    (
        r"what digit is on the (\w+) (?!object)(\w+) \?",
        lambda objects, m: {str(o.digit) for o in objects if (o.colour, o.shape) == (m[1], m[2])},
    ),
    (
        r"what digit is on the (\w+) object \?",
        lambda objects, m: {str(o.digit) for o in objects if o.colour == m[1]},
    ),
    (
        r"what digit is on the (\w+) \?",
        lambda objects, m: {str(o.digit) for o in objects if o.shape == m[1]},
    ),
    (
        r"what colour is the object with digit (\d) \?",
        lambda objects, m: {o.colour for o in objects if o.digit == int(m[1])},
    ),
    (
        r"what shape is the object with digit (\d) \?",
        lambda objects, m: {o.shape for o in objects if o.digit == int(m[1])},
    ),
    (
        r"what colour is the (\w+) \?",
        lambda objects, m: {o.colour for o in objects if o.shape == m[1]},
    ),
    (
        r"what shape is the (\w+) object \?",
        lambda objects, m: {o.shape for o in objects if o.colour == m[1]},
    ),
    (r"which object is (\w+) \?", _outermost),
    (r"how many objects are there \?", lambda objects, m: {str(len(objects))}),
    (
        r"how many (\w+) objects are there \?",
        lambda objects, m: {str(sum(m[1] in (o.colour, o.shape) for o in objects))},
    ),
    (
        r"is there a (\w+) (\w+) \?",
        lambda objects, m: {
            "yes" if any((o.colour, o.shape) == (m[1], m[2]) for o in objects) else "no"
        },
    ),
]


def possible_answers(objects: tuple[SceneObject, ...], text: str) -> set[str]:
    for pattern, rule in RULES:
        if match := re.fullmatch(pattern, text):
            return rule(list(objects), match)
    raise AssertionError(f"no rule for {text!r}")


@pytest.mark.parametrize("kind", KINDS)
def test_the_answer_is_right_and_the_only_one(kind: str) -> None:
    asked = 0
    for index in range(60):
        rng = np.random.default_rng([9, index])
        scene = make_scene(rng, FULL_STYLE, "train")
        for question in ask(rng, scene, 4, (kind,)):
            assert possible_answers(scene.objects, question.text) == {question.answer}
            assert question.kind == kind
            asked += 1
    assert asked > 40


def all_questions(num_scenes: int = 200) -> list[Question]:
    return [q for s in evaluation_scenes(4 * num_scenes, seed=5) for q in s.questions]


def test_every_word_is_in_the_vocabulary() -> None:
    for question in all_questions():
        assert VOCABULARY[UNKNOWN] not in word_ids(f"{question.text} {question.answer}")
        assert len(question.answer.split()) <= 2


def test_yes_and_no_are_balanced() -> None:
    answers = [q.answer for q in all_questions(400) if q.kind == "exist"]
    assert 0.4 < answers.count("yes") / len(answers) < 0.6


def test_no_question_is_asked_twice_about_a_scene() -> None:
    for scene in evaluation_scenes(200, seed=6):
        assert len({q.text for q in scene.questions}) == len(scene.questions)


def test_sets_are_disjoint_by_their_seeds() -> None:
    calibration = {s.scene.image.tobytes() for s in calibration_scenes(40, seed=0)}
    evaluation = {s.scene.image.tobytes() for s in evaluation_scenes(160, seed=0)}
    assert len(calibration) == 40
    assert not calibration & evaluation
