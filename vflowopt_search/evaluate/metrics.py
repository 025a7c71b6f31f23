"""How right an answer is, from 0 to 1: one small pure function for each usual metric."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from rapidfuzz.distance import Levenshtein

from vflowopt_search.errors import EvaluationError
from vflowopt_search.evaluate.words import normalised, number_in, vqa_normalised

Score = Callable[[str, Sequence[str], Sequence[str]], float]
"""Takes an answer, the answers that are right, and the options (often none); gives 0..1."""

ANLS_THRESHOLD = 0.5
TOLERANCE = 0.05
AGREEING = 3
"""Annotators who have to agree for full VQA accuracy."""


def exact_match(answer: str, truths: Sequence[str], options: Sequence[str] = ()) -> float:
    """1 for one of the right answers, but for case, punctuation and blanks."""
    return float(normalised(answer) in {normalised(truth) for truth in truths})


def contains(answer: str, truths: Sequence[str], options: Sequence[str] = ()) -> float:
    """1 if the words of a right answer stand in the answer, one after the other."""
    said = f" {normalised(answer)} "
    return max(exact_match(answer, truths), *(_within(said, truth) for truth in truths))


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
    right = {option_meant(truth, options) for truth in truths} - {None}
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
    if letter := _letter(text.strip(), letters):
        return letter
    said = f" {normalised(text)} "
    named = [place for place, option in zip(letters, words, strict=False) if _within(said, option)]
    return named[0] if len(named) == 1 else None


def _letter(text: str, letters: str) -> str | None:
    """`B`, `(b)`, `B. words`, `Answer: B`, `the answer is (B)`, `... option B`, or one lone B."""
    one = f"[{letters}{letters.lower()}]"
    for pattern in (
        rf"\(?({one})\)?[.:,]?",
        rf"\(({one})\)\s.*",
        rf"({one})[.):,]\s.*",
        # `the answer is a cat` names none
        rf".*\b(?:[Aa]nswer|[Oo]ption|[Cc]hoice)(?:\s+is)?\s*:?\s*([{letters}]|\({one}\))(?!\w).*",
    ):
        if found := re.fullmatch(pattern, text, re.DOTALL):
            return found[1].strip("()").upper()
    # `A` and `I` are words as well
    lone = set(re.findall(rf"(?<![\w'])([{letters}])(?![\w'])", text)) - {"A", "I"}
    return lone.pop() if len(lone) == 1 else None


def _within(said: str, truth: str) -> float:
    words = normalised(truth)
    return float(bool(words) and f" {words} " in said)


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
