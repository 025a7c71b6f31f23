"""Metrics on cases worked by hand, and laws that hold for every answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vflowopt_search.errors import EvaluationError
from vflowopt_search.evaluate.metrics import (
    METRICS,
    anls,
    contains,
    exact_match,
    metric_named,
    multiple_choice,
    option_meant,
    relaxed_accuracy,
    vqa_accuracy,
)
from vflowopt_search.evaluate.words import (
    normalised,
    number_in,
    vqa_normalised,
)

texts = st.text(alphabet="aBc 12.,%'()-é", max_size=12)
every_metric = pytest.mark.parametrize("metric", METRICS)


@pytest.mark.parametrize(
    ("answer", "truth", "same"),
    [
        ("Red.", "red", True),
        ("  dark  red ", "dark red", True),
        ("2", "two", False),
        ("red", "dark red", False),
        ("", "red", False),
        ("it's", "its", False),
        # punctuation that is the answer, or a part of the number
        ("<", ">", False),
        ("", ">", False),
        ("+", "-", False),
        ("<", "<", True),
        ("-5", "5", False),
        ("5%", "5", False),
        (".5", "5", False),
        ("-.5", ".5", False),
        ("-$5", "5", False),
        ("(-5%).", "-5 %", True),
        ("$5", "5", True),
        ("...5", "5", True),
        ("red-", "-red", True),
    ],
)
def test_exact_match_forgives_case_and_punctuation_only(
    answer: str, truth: str, same: bool
) -> None:
    assert exact_match(answer, [truth]) == same
    assert exact_match(answer, ["blue", truth]) == same


@pytest.mark.parametrize(
    ("answer", "truths", "score"),
    [
        ("The answer is red.", ["red"], 1),
        ("redder", ["red"], 0),
        ("a dark red car", ["dark blue", "Dark Red"], 1),
        ("red dark", ["dark red"], 0),
        ("anything", ["..."], 0),
        ("...", ["!"], 0),
        ("a > b", [">"], 1),
        ("a < b", [">"], 0),
        ("it is -5 degrees", ["5"], 0),
    ],
)
def test_contains_whole_words_in_order(answer: str, truths: list[str], score: float) -> None:
    assert contains(answer, truths) == score


@pytest.mark.parametrize(
    ("alike", "others", "score"),
    [
        # n of 10 said it: n of the 10 subsets lack one of them
        (0, 10, 0.0),
        (1, 9, 9 / 10 * 1 / 3),
        (2, 8, 2 / 10 * 1 / 3 + 8 / 10 * 2 / 3),
        (3, 7, 3 / 10 * 2 / 3 + 7 / 10 * 1),
        (4, 6, 1.0),
        (10, 0, 1.0),
        # fewer annotators than the challenge has
        (1, 0, 1.0),
        (2, 0, 1.0),
        (1, 1, 1 / 2),
        (2, 1, 2 / 3 * 1 / 2 + 1 / 3 * 1),
    ],
)
def test_vqa_accuracy_leaves_one_annotator_out(alike: int, others: int, score: float) -> None:
    truths = ["two"] * alike + [f"other {n}" for n in range(others)]
    assert vqa_accuracy("2", truths) == pytest.approx(score)


@pytest.mark.parametrize(
    ("text", "same_as"),
    [
        ("The Dog", "dog"),
        ("two dogs", "2 dogs"),
        ("none", "0"),
        ("dont", "don't"),
        ("couldn'tve", "couldn't've"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("yes.", "yes"),
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("a\nb", "b"),
        ("U.S.", "us"),
    ],
)
def test_normalisation_of_the_vqa_challenge(text: str, same_as: str) -> None:
    assert vqa_normalised(text) == same_as


@pytest.mark.parametrize(
    ("answer", "truth", "score"),
    [
        ("abcd", "ABCD", 1),
        ("abcx", "abcd", 3 / 4),
        ("abxx", "abcd", 0),  # a distance of one half is too far
        ("abxxx", "abcde", 3 / 5 * 0),
        ("abcxx", "abcde", 3 / 5),
        ("  new   york ", "new york", 1),
        ("", "", 1),
        ("", "a", 0),
    ],
)
def test_anls(answer: str, truth: str, score: float) -> None:
    assert anls(answer, [truth]) == pytest.approx(score)
    assert anls(answer, ["zzzzzzzzzzzz", truth]) == pytest.approx(score)


@pytest.mark.parametrize(
    ("answer", "truth", "right"),
    [
        ("104", "100", True),
        ("105", "100", True),
        ("105.1", "100", False),
        ("95", "100", True),
        ("94.9", "100", False),
        ("-10.4", "-10", True),
        ("10", "-10", False),
        ("12%", "0.12", True),
        ("12%", "12", False),
        ("$1,200", "1200", True),
        ("0", "0.0", True),
        ("0.01", "0", False),
        ("Germany", "germany", True),
        ("Germany", "France", False),
        ("about 100", "100", False),
        ("9" * 400, "9" * 400, True),
    ],
)
def test_relaxed_accuracy_is_five_per_cent(answer: str, truth: str, right: bool) -> None:
    assert relaxed_accuracy(answer, [truth]) == right


OPTIONS = ["a red car", "a blue car", "I do not know", "the car"]


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(b)", "B"),
        ("B.", "B"),
        ("B. a blue car", "B"),
        ("(B) because it is blue", "B"),
        ("Answer: B", "B"),
        ("The answer is B, for it is blue", "B"),
        ("The correct answer is (b).", "B"),
        ("I would choose option D", "D"),
        ("A Blue Car.", "B"),
        ("It shows a blue car, parked", "B"),
        ("It shows a red car or a blue car", None),
        ("clearly B", "B"),
        ("B or C", None),
        ("A cat", None),
        ("The answer is a cat", None),
        ("E", None),
        ("", None),
    ],
)
def test_the_option_that_an_answer_names(answer: str, letter: str | None) -> None:
    assert option_meant(answer, OPTIONS) == letter


def test_multiple_choice_takes_letters_and_words_on_both_sides() -> None:
    assert multiple_choice("B", ["a blue car"], OPTIONS) == 1
    assert multiple_choice("a blue car", ["B"], OPTIONS) == 1
    assert multiple_choice("C", ["B"], OPTIONS) == 0
    assert multiple_choice("nothing", ["B"], OPTIONS) == 0
    assert multiple_choice("nothing", ["nobody"], OPTIONS) == 0
    assert multiple_choice("(c)", ["C"]) == 1


def test_an_option_that_is_a_letter_or_a_number_is_meant_by_its_words() -> None:
    assert option_meant("B", ["C", "A", "B"]) == "C"
    assert option_meant("2", ["1", "2", "3"]) == "B"


def test_a_label_may_be_the_number_of_an_option() -> None:
    assert multiple_choice("A", ["0"], OPTIONS) == 1
    assert multiple_choice("a blue car", ["1"], OPTIONS) == 1
    assert multiple_choice("A", ["4"], OPTIONS) == 0  # there is none
    assert multiple_choice("B", ["0"], ["2", "0"]) == 1  # what an option says comes first
    assert option_meant("0", OPTIONS) is None  # said by a model it names none


@given(value=st.integers(0, 10**6), sign=st.sampled_from(["", "-"]))
def test_a_number_is_only_itself(value: int, sign: str) -> None:
    told = f"{sign}{value}"
    assert exact_match(f"({told}).", [told]) == 1
    assert exact_match(f"-{value}", [told]) == (sign == "-")
    assert exact_match(f"{told}%", [told]) == 0
    assert exact_match(f"{told} %", [f"{told}%"]) == 1


@every_metric
@given(answer=texts, truths=st.lists(texts, min_size=1, max_size=5))
def test_scores_lie_between_0_and_1(metric: str, answer: str, truths: list[str]) -> None:
    assert 0 <= METRICS[metric](answer, truths, ()) <= 1


@every_metric
@given(truth=texts, num=st.integers(1, 12))
def test_the_right_answer_scores_1(metric: str, truth: str, num: int) -> None:
    letters = metric == "multiple_choice"
    assert METRICS[metric]("B" if letters else truth, ["B" if letters else truth] * num, ()) == 1


@every_metric
@given(answer=texts, truths=st.lists(texts, min_size=2, max_size=5), seed=st.randoms())
def test_the_order_of_the_right_answers_says_nothing(
    metric: str, answer: str, truths: list[str], seed: object
) -> None:
    score = METRICS[metric]
    assert score(answer, truths, ()) == pytest.approx(score(answer, truths[::-1], ()))


def edit_distance(one: str, other: str) -> int:
    """By its definition: the last letters are the same, or one is inserted, deleted, replaced."""
    before = list(range(len(other) + 1))
    for row, letter in enumerate(one, start=1):
        now = [row]
        for column, wanted in enumerate(other, start=1):
            replaced = before[column - 1] + (letter != wanted)
            now.append(min(before[column] + 1, now[-1] + 1, replaced))
        before = now
    return before[-1]


@given(one=texts, two=texts)
def test_anls_is_one_minus_the_edit_distance_where_that_is_below_a_half(one: str, two: str) -> None:
    plain = [" ".join(text.lower().split()) for text in (one, two)]
    distance = edit_distance(*plain) / max(1, *map(len, plain))
    assert anls(one, [two]) == (1 - distance if distance < 0.5 else 0)


@given(text=texts)
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalised(normalised(text)) == normalised(text)


@given(value=st.floats(-1e6, 1e6, allow_nan=False))
def test_numbers_are_read(value: float) -> None:
    assert number_in(f" {value:,.4f} ") == pytest.approx(value, abs=1e-4)
    assert number_in(f"{value:.4f}%") == pytest.approx(value / 100, abs=1e-5)
    assert number_in(f"{value} apples") is None


def test_an_unknown_metric_is_refused_with_the_known_ones() -> None:
    with pytest.raises(EvaluationError, match="no metric is called 'bleu'; use one of exact_match"):
        metric_named("bleu")
