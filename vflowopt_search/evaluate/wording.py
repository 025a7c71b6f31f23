"""What is added to a question: its options, and how to answer."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import replace

from vflowopt_search.calibration.samples import Part, Sample, Turn
from vflowopt_search.evaluate.words import normalised

BY_LETTER = "Answer with the option's letter from the given choices directly."


def with_options(sample: Sample) -> Sample:
    """The options below the question, unless it names them itself."""
    asked = f" {normalised(sample.prompt)} "
    if not sample.options or all(f" {normalised(one)} " in asked for one in sample.options):
        return sample
    letters = zip(string.ascii_uppercase, sample.options, strict=False)
    return with_lines(sample, [*(f"{letter}. {option}" for letter, option in letters), BY_LETTER])


def with_lines(sample: Sample, lines: Sequence[str]) -> Sample:
    """More lines below the question, in its words and at the end of its chat."""
    more = "\n".join(lines)
    turns = sample.turns
    if turns:
        turns = (*turns[:-1], Turn(turns[-1].role, _longer(turns[-1].parts, more)))
    return replace(sample, prompt=f"{sample.prompt}\n{more}", turns=turns)


def _longer(parts: tuple[Part, ...], more: str) -> tuple[Part, ...]:
    if parts and isinstance(parts[-1], str):
        return (*parts[:-1], f"{parts[-1]}\n{more}")
    return (*parts, more)
