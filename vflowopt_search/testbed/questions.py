"""Typed questions about a scene; only those with exactly one right answer are asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from vflowopt_search.testbed.scenes import COLOURS, SHAPES, Scene, SceneObject

EXTREME_MARGIN = 8  # pixels between the first and the second object


@dataclass(frozen=True)
class Question:
    """A question, its answer of one or two words, and its kind."""

    text: str
    answer: str
    kind: str


def ask(
    rng: np.random.Generator, scene: Scene, num_questions: int, kinds: tuple[str, ...] = ()
) -> list[Question]:
    """Up to `num_questions` different questions: a kind at random, then one of that kind."""
    chosen: dict[str, Question] = {}
    names = kinds or KINDS
    for kind in rng.choice(len(names), size=4 * num_questions).tolist():
        question = _ask_one(rng, scene, names[kind])
        if question is not None:
            chosen.setdefault(question.text, question)
        if len(chosen) == num_questions:
            break
    return list(chosen.values())


def _ask_one(rng: np.random.Generator, scene: Scene, kind: str) -> Question | None:
    candidates = _CANDIDATES[kind](rng, scene.objects)
    if not candidates:
        return None
    text, answer = candidates[int(rng.integers(len(candidates)))]
    return Question(text=text, answer=answer, kind=kind)


Objects = tuple[SceneObject, ...]
Candidates = list[tuple[str, str]]


def _once(values: Iterable[object]) -> set[object]:
    """The values that occur exactly once."""
    return {value for value, count in Counter(values).items() if count == 1}


def _digit(rng: np.random.Generator, objects: Objects) -> Candidates:
    single = _once((o.colour, o.shape) for o in objects)
    return [
        (f"what digit is on the {o.colour} {o.shape} ?", str(o.digit))
        for o in objects
        if (o.colour, o.shape) in single
    ]


def _digit_by_colour(rng: np.random.Generator, objects: Objects) -> Candidates:
    single = _once(o.colour for o in objects)
    return [
        (f"what digit is on the {o.colour} object ?", str(o.digit))
        for o in objects
        if o.colour in single
    ]


def _digit_by_shape(rng: np.random.Generator, objects: Objects) -> Candidates:
    single = _once(o.shape for o in objects)
    return [
        (f"what digit is on the {o.shape} ?", str(o.digit)) for o in objects if o.shape in single
    ]


def _colour_by_digit(rng: np.random.Generator, objects: Objects) -> Candidates:
    single = _once(o.digit for o in objects)
    return [
        (f"what colour is the object with digit {o.digit} ?", o.colour)
        for o in objects
        if o.digit in single
    ]


def _shape_by_digit(rng: np.random.Generator, objects: Objects) -> Candidates:
    single = _once(o.digit for o in objects)
    return [
        (f"what shape is the object with digit {o.digit} ?", o.shape)
        for o in objects
        if o.digit in single
    ]


def _colour(rng: np.random.Generator, objects: Objects) -> Candidates:
    single = _once(o.shape for o in objects)
    return [(f"what colour is the {o.shape} ?", o.colour) for o in objects if o.shape in single]


def _shape(rng: np.random.Generator, objects: Objects) -> Candidates:
    single = _once(o.colour for o in objects)
    return [
        (f"what shape is the {o.colour} object ?", o.shape) for o in objects if o.colour in single
    ]


def _extreme(rng: np.random.Generator, objects: Objects) -> Candidates:
    found: Candidates = []
    for axis, word in enumerate(("leftmost", "topmost")):
        ordered = sorted(objects, key=lambda o: o.centre[axis])
        if len(ordered) > 1:
            gap = ordered[1].centre[axis] - ordered[0].centre[axis]
            if gap >= EXTREME_MARGIN:
                found.append(
                    (f"which object is {word} ?", f"{ordered[0].colour} {ordered[0].shape}")
                )
    return found


def _count(rng: np.random.Generator, objects: Objects) -> Candidates:
    """All objects in every second question, otherwise those of one colour or shape."""
    if rng.random() < 0.5:
        return [("how many objects are there ?", str(len(objects)))]
    counts = Counter([o.colour for o in objects] + [o.shape for o in objects])
    words = (*COLOURS, *SHAPES)
    number = int(rng.integers(3))  # so that 0, 1 and 2 are asked for equally often
    return [
        (f"how many {word} objects are there ?", str(counts[word]))
        for word in words
        if min(counts[word], 2) == number
    ]


def _exist(rng: np.random.Generator, objects: Objects) -> Candidates:
    """Yes and no equally often; every second "no" has its colour and its shape elsewhere."""
    present = {(o.colour, o.shape) for o in objects}
    if rng.random() < 0.5:
        return [(f"is there a {c} {s} ?", "yes") for c, s in sorted(present)]
    near = rng.random() < 0.5
    colours = sorted({o.colour for o in objects}) if near else list(COLOURS)
    shapes = sorted({o.shape for o in objects}) if near else list(SHAPES)
    return [
        (f"is there a {c} {s} ?", "no") for c in colours for s in shapes if (c, s) not in present
    ]


_CANDIDATES: dict[str, Callable[[np.random.Generator, Objects], Candidates]] = {
    "digit": _digit,
    "colour_by_digit": _colour_by_digit,
    "shape_by_digit": _shape_by_digit,
    "colour": _colour,
    "shape": _shape,
    "extreme": _extreme,
    "count": _count,
    "exist": _exist,
    "digit_by_colour": _digit_by_colour,
    "digit_by_shape": _digit_by_shape,
}
KINDS: tuple[str, ...] = tuple(_CANDIDATES)
