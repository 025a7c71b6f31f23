"""Accuracy: right answers counted on the same samples, pruned and unpruned."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.pruning.oracle import strategy_of
from tests.small_set import small_set
from tests.tiny import tiny_model, tiny_processor
from vflowopt_search.calibration.encoding import encode
from vflowopt_search.deploy import pruned
from vflowopt_search.errors import CalibrationError
from vflowopt_search.evaluate import Accuracy, evaluate_accuracy, matches

PRUNED = strategy_of((0, 0.4), (3, 0.5))


def test_answers_are_those_of_generate() -> None:
    model: Any = tiny_model("llava_onevision")
    processor: Any = tiny_processor("llava_onevision")
    samples = small_set().samples
    results = evaluate_accuracy(
        model, processor, samples, {"unpruned": None, "pruned": PRUNED}, batch_size=3
    )
    for name, strategy in (("unpruned", strategy_of((0, 1.0))), ("pruned", PRUNED)):
        inputs = encode(processor, samples)
        with pruned(model, strategy):
            ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        expected = processor.batch_decode(
            ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        assert list(results[name].answers) == expected
    assert results["unpruned"].answers != results["pruned"].answers


def test_accuracy_counts_matches_by_group() -> None:
    model, processor = tiny_model("llava"), tiny_processor("llava")
    samples = small_set().samples
    answers = evaluate_accuracy(model, processor, samples, {"unpruned": None})["unpruned"].answers
    told = tuple(
        replace(sample, answer=answer.upper() if i < 4 else "something else")
        for i, (sample, answer) in enumerate(zip(samples, answers, strict=True))
    )
    seen: list[tuple[int, int]] = []
    result = evaluate_accuracy(
        model, processor, told, {"unpruned": None}, progress=lambda d, t: seen.append((d, t))
    )["unpruned"]
    assert result.correct == (True,) * 4 + (False,) * 3
    assert result.accuracy == pytest.approx(4 / 7)
    assert result.by_group() == {"even": 2 / 4, "odd": 2 / 3}
    assert seen[-1] == (7, 7)


def test_samples_without_a_group_are_in_no_group() -> None:
    assert Accuracy((True, False), (None, "a"), ("x", "y")).by_group() == {"a": 0.0}


def test_unlabelled_samples_are_refused() -> None:
    samples = [replace(sample, answer=None) for sample in small_set().samples]
    with pytest.raises(CalibrationError, match="7 of 7 samples have no answer"):
        evaluate_accuracy(tiny_model("llava"), tiny_processor("llava"), samples, {"plain": None})


@pytest.mark.parametrize(
    ("answer", "truth", "same"),
    [
        ("Red.", "red", True),
        ("  dark  red ", "dark red", True),
        ("2", "two", False),
        ("red", "dark red", False),
        ("", "red", False),
    ],
)
def test_matching_forgives_case_and_punctuation_only(answer: str, truth: str, same: bool) -> None:
    assert matches(answer, truth) is same
