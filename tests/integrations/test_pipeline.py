"""transformers' own pipeline on a pruned model: its answers are those of `generate`."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from transformers import pipeline

from tests.pruning.oracle import strategy_of
from vflowopt_search import testbed
from vflowopt_search.calibration.encoding import encode
from vflowopt_search.calibration.prompts import prompt_text
from vflowopt_search.calibration.samples import Sample
from vflowopt_search.deploy import prune, pruned
from vflowopt_search.strategy import Importance
from vflowopt_search.testbed.data import evaluation_scenes

# so few tokens that the answers suffer: the unpruned model's would not pass for the pruned one's
FEW = strategy_of((0, 0.03), importance=Importance(score="uniform"))
ASKED = {"max_new_tokens": 4, "do_sample": False}


@cache
def shipped() -> tuple[Any, Any]:
    return testbed.load_model(), testbed.load_processor()


@cache
def samples() -> list[Sample]:
    """Questions of different length."""
    return [
        Sample(question.text, question.text, (asked.image,))
        for asked in evaluation_scenes(10, seed=4)
        for question in asked.questions
    ]


@cache
def expected() -> list[str]:
    """What `generate` answers under the strategy, to each question alone."""
    model, processor = shipped()
    answers = []
    with pruned(model, FEW):
        for sample in samples():
            inputs = encode(processor, [sample])
            ids = model.generate(**inputs, **ASKED)
            new = ids[:, inputs["input_ids"].shape[1] :]
            answers += processor.batch_decode(new, skip_special_tokens=True)
    return answers


def made() -> Any:
    model, processor = shipped()
    return pipeline("image-text-to-text", model=model, processor=processor)


def chat(sample: Sample) -> list[dict[str, Any]]:
    image = {"type": "image", "image": sample.images[0]}
    return [{"role": "user", "content": [image, {"type": "text", "text": sample.prompt}]}]


def said(answer: Any) -> str:
    [one] = answer if isinstance(answer, list) else [answer]
    return str(one["generated_text"]).strip()


@pytest.mark.parametrize("batch_size", [1, 4])
def test_chats(batch_size: int) -> None:
    pipe = made()
    asked = {**ASKED, "return_full_text": False, "batch_size": batch_size}
    with pruned(pipe.model, FEW) as applied:
        answers = pipe(text=[chat(sample) for sample in samples()], **asked)
        alone = pipe(text=chat(samples()[0]), **asked)
    assert [said(answer) for answer in answers] == expected()
    assert said(alone) == expected()[0]
    assert applied.last is not None
    assert applied.last.tokens_per_layer == [[8] * 8]  # of 259


@pytest.mark.parametrize("batch_size", [1, 4])
def test_images_and_texts(batch_size: int) -> None:
    pipe, (_, processor) = made(), shipped()
    handle = prune(pipe.model, FEW)
    answers = pipe(
        images=[list(sample.images) for sample in samples()],
        text=[prompt_text(processor, sample) for sample in samples()],
        return_full_text=False,
        batch_size=batch_size,
        **ASKED,
    )
    handle.remove()
    assert [said(answer) for answer in answers] == expected()


def test_the_whole_model_answers_differently() -> None:
    pipe = made()
    answers = pipe(text=[chat(s) for s in samples()], return_full_text=False, **ASKED)
    assert [said(answer) for answer in answers] != expected()
