"""The letter that an answer names: every letter is read as every other."""

from __future__ import annotations

import string
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vflowopt_search.evaluate.letters import letter_named

LETTERS = "ABCDEFGHIJ"  # A and I are words as well

NAMED = (
    "{0}",
    "{0}!",
    "({0})",
    "[{0}]",
    "**{0}**",
    "*{0}*.",
    '"{0}"',
    "\\boxed{{{0}}}",
    "$\\boxed{{\\text{{{0}}}}}$",
    "{0}. a cat",
    "({0}) a cat",
    "{0} is correct",
    "{0} is correct, not {1}",
    "Not {1}, {0}",
    "{1} is wrong, so {0}",
    "{1} is not right: {0}",
    "The answer is **{0}**.",
    "The answer is ({0})",
    "Answer: {0}",
    "I would choose option {0}",
    "Option {1} is wrong. Option {0}!",
    "The answer is {0}. Option {1} is wrong.",
    "clearly {0}",
    "{0}\nThe sign is red.",
    "{0}.\nThe sign is red.",
    "**{0}**\n\nThe image shows a sign.",
    "```\n{0}\n```\nThe image shows a sign.",
    "\n{0}\nReasoning: {1} is a cat",
    "{0}\n\nExplanation: {1}",
    "---\n{0}\n\nExplanation: {1}",
    "{0}. a cat\nIt looks like {1}",
    "Clearly I would choose {0}\nThe sign is red.",
    "{0}, a cat",
    "{0}, A cat",
)
UNNAMED = (
    "",
    "Not {0}",
    "not {0}.",
    "{0} is not correct",
    "The answer isn't {0}",
    "It is not option {0}",
    "{0} or {1}",
    "{0}, {1}",
    "{0} {1}",
    "{0} and {1}",
    "either {0} or {1}",
    "The answer is {0} or {1}",
    "The answer is {0} or option {1}",
    "{0} cat",
    "{0} Mercedes",
    "{0}'s",
    "the answer is a cat",
    "{0}\n{1}",
    "{0} vs {1}",
    "{0} versus {1}",
    "clearly {0} vs {1}",
    "{0} and {1} are both correct",
    "{0} or {1} could be right",
    "clearly {0} or {1} could be right",
    "{0}, {1} and {0} are correct",
    "({0}) and ({1}) are correct",
    "{0} and {1} are both wrong",
)
IN_LOWER_CASE = ("Answer: {0}", "the answer is {0}", "The answer is {0}.", "answer: {0}\nA cat")

pairs = st.lists(st.sampled_from(LETTERS), min_size=2, max_size=2, unique=True)


@pytest.mark.parametrize("template", NAMED)
@given(letters=pairs)
def test_an_answer_names_its_letter_whichever_it_is(template: str, letters: list[str]) -> None:
    assert letter_named(template.format(*letters), LETTERS) == letters[0]


@pytest.mark.parametrize("template", UNNAMED)
@given(letters=pairs)
def test_an_answer_that_does_not_choose_names_none(template: str, letters: list[str]) -> None:
    assert letter_named(template.format(*letters), LETTERS) is None


@pytest.mark.parametrize("template", IN_LOWER_CASE)
@given(letter=st.sampled_from("BCDEFGHJ"))
def test_a_letter_in_lower_case_that_is_no_word(template: str, letter: str) -> None:
    assert letter_named(template.format(letter.lower()), LETTERS) == letter


@given(
    unit=st.sampled_from([", ", " and", "\n,", ", A", " A", "A or ", " not B"]),
    ending=st.sampled_from(["", "x", " B"]),
)
def test_an_answer_that_repeats_itself_takes_no_time(unit: str, ending: str) -> None:
    before = time.process_time()
    letter_named("A" + unit * 60 + ending, LETTERS)
    assert time.process_time() - before < 1


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("I think A", "A"),
        ("A cat, so B", "B"),
        ("I am sure that it is A cat", None),
        ("b", "B"),
        ("(b).", "B"),
        ("a dog", None),
        ("E", None),
        ("A and B are wrong, so C", "C"),
        ("b, c and d are correct", None),
        ("the answer is b or c", None),
        ("the answer is b, d'Artagnan", "B"),
        ("the answer is d cat", None),
        ("the answer is c-shaped", None),
        ("the answer is a", None),
        ("A and C describe it", None),
        ("a) not B or C", "A"),
        ("A. B", "A"),
    ],
)
def test_words_and_letters_that_are_no_option(text: str, letter: str | None) -> None:
    assert letter_named(text, "ABCD") == letter


@pytest.mark.parametrize("words", ["I think", "I may be wrong", "T-shirt", "U.S. flag", "a cat"])
def test_words_behind_a_letter_without_options(words: str) -> None:
    assert letter_named(f"B, {words}", string.ascii_uppercase) == "B"
