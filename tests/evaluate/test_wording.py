"""What is added to a question reaches its words and the end of its chat."""

from __future__ import annotations

from dataclasses import replace

from PIL import Image

from vflowopt_search.calibration.samples import Mark, Sample, Turn
from vflowopt_search.evaluate.wording import BY_LETTER, with_lines, with_options

PICTURE = Image.new("RGB", (4, 4))


def test_lines_are_added_at_the_end() -> None:
    sample = Sample("s", "which?", (PICTURE,))
    assert with_lines(sample, ["one word"]).prompt == "which?\none word"
    chat = (Turn("user", ("is ", Mark.IMAGE, " it?")), Turn("assistant", ("no",)))
    asked = replace(sample, turns=(*chat, Turn("user", ("which?",))))
    assert with_lines(asked, ["a", "b"]).turns == (*chat, Turn("user", ("which?\na\nb",)))
    last = replace(sample, turns=(Turn("user", ("which?", Mark.IMAGE)),))
    assert with_lines(last, ["a"]).turns == (Turn("user", ("which?", Mark.IMAGE, "a")),)


def test_options_are_listed_unless_the_question_does() -> None:
    sample = Sample("s", "which?", (PICTURE,), options=("red", "blue"))
    assert with_options(sample).prompt == f"which?\nA. red\nB. blue\n{BY_LETTER}"
    named = replace(sample, prompt="Red or blue?")
    assert with_options(named) is named
    assert with_options(replace(sample, options=())).prompt == "which?"
