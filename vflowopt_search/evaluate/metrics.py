"""How right an answer is, from 0 to 1: one small pure function for each usual metric."""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from rapidfuzz.distance import Levenshtein

from vflowopt_search.errors import EvaluationError
from vflowopt_search.evaluate.letters import letter_named
from vflowopt_search.evaluate.words import normalised, number_in, vqa_normalised

Score = Callable[[str, Sequence[str], Sequence[str]], float]
"""Takes an answer, the answers that are right, and the options (often none); gives 0..1."""

ANLS_THRESHOLD = 0.5
TOLERANCE = 0.05
AGREEING = 3
"""Annotators who have to agree for full VQA accuracy."""


def exact_match(answer: str, truths: Sequence[str], options: Sequence[str] = ()) -> float:
    """1 for one of the right answers, but for case, punctuation and blanks.

    Punctuation counts where it changes a number (-5, 5%) or is all there is to an answer.
    """
    return float(normalised(answer) in {normalised(truth) for truth in truths})


def contains(answer: str, truths: Sequence[str], options: Sequence[str] = ()) -> float:
    """1 if the words of a right answer stand in the answer, one after the other."""
    return max(exact_match(answer, truths), *(_within(answer, truth) for truth in truths))


def vqa_accuracy(answer: str, truths: Sequence[str], options: Sequence[str] = ()) -> float:
    """min(n / 3, 1) for n annotators who said the same, averaged over leaving one of them out.

    With fewer than four annotators all the others have to agree, and a single one decides.
    """
    said = vqa_normalised(answer)
    alike = [vqa_normalised(truth) == said for truth in truths]
    if len(alike) == 1:
        return float(alike[0])
    needed = min(AGREEING, len(alike) - 1)
    total = sum(alike)
    return sum(min((total - mine) / needed, 1.0) for mine in alike) / len(alike)


def anls(answer: str, truths: Sequence[str], options: Sequence[str] = ()) -> float:
    """1 - normalised Levenshtein distance to the nearest right answer, 0 where that is below .5."""
    return max(_likeness(_blanks(answer), _blanks(truth)) for truth in truths)


def relaxed_accuracy(answer: str, truths: Sequence[str], options: Sequence[str] = ()) -> float:
    """1 for a number within 5 % of a right one, or for the same words (ChartQA)."""
    return max(_about_equal(answer, truth) for truth in truths)


def multiple_choice(answer: str, truths: Sequence[str], options: Sequence[str] = ()) -> float:
    """1 if the answer chooses a right option, by its letter or by its words."""
    right = {option_labelled(truth, options) for truth in truths} - {None}
    return float(option_meant(answer, options) in right)


METRICS: Mapping[str, Score] = MappingProxyType(
    {
        "exact_match": exact_match,
        "vqa_accuracy": vqa_accuracy,
        "anls": anls,
        "multiple_choice": multiple_choice,
        "relaxed_accuracy": relaxed_accuracy,
        "contains": contains,
    }
)


def metric_named(name: str) -> Score:
    """One of `METRICS`; raises EvaluationError for another name."""
    if name not in METRICS:
        raise EvaluationError(f"no metric is called {name!r}; use one of {', '.join(METRICS)}")
    return METRICS[name]


def option_meant(text: str, options: Sequence[str] = ()) -> str | None:
    """The letter of the option that a text names, by letter or by words; None if not just one.

    Without options any letter will do.
    """
    letters = string.ascii_uppercase[: len(options) or 26]
    words = [normalised(option) for option in options]
    if normalised(text) and words.count(normalised(text)) == 1:
        return letters[words.index(normalised(text))]
    if letter := letter_named(text, letters):
        return letter
    named = [place for place, option in zip(letters, words, strict=False) if _within(text, option)]
    return named[0] if len(named) == 1 else None


def option_labelled(label: str, options: Sequence[str] = ()) -> str | None:
    """The same for a label, which may also be an option's number, the first being 0."""
    meant = option_meant(label, options)
    number = label.strip()
    if meant is None and number.isdecimal() and int(number) < len(options):
        return string.ascii_uppercase[int(number)]
    return meant


def _within(answer: str, truth: str) -> float:
    words = normalised(truth)
    says = normalised if any(letter.isalnum() for letter in words) else _blanks
    return float(bool(words) and f" {words} " in f" {says(answer)} ")


def _blanks(text: str) -> str:
    return " ".join(text.lower().split())


def _likeness(one: str, other: str) -> float:
    distance = Levenshtein.normalized_distance(one, other)
    return 1 - distance if distance < ANLS_THRESHOLD else 0.0


def _about_equal(answer: str, truth: str) -> float:
    if _blanks(answer) == _blanks(truth):
        return 1.0
    said, wanted = number_in(answer), number_in(truth)
    if said is None or wanted is None:
        return 0.0
    return float(abs(said - wanted) <= TOLERANCE * abs(wanted))
