"""What is measured along an answer is what happens while it is decoded.

Shape suffixes: B = rows, T = tokens of the answers, D = hidden width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.contract.models import inputs_of, model_of
from tests.contract.oracle import NEW_TOKENS, generate
from tests.pruning.oracle import strategy_of
from tests.small_set import small_set
from tests.tiny import tiny_model, tiny_processor
from vflowopt_search.adapters.registry import adapter_for
from vflowopt_search.calibration.encoding import encode
from vflowopt_search.deploy import pruned
from vflowopt_search.divergence import ANSWER_METRICS, Readout, divergence
from vflowopt_search.errors import UnsupportedError
from vflowopt_search.objective import Objective, build_objective
from vflowopt_search.reference.along_answer import (
    AlongAnswer,
    answer_divergences,
    decoded,
    through_head,
)
from vflowopt_search.strategy import Importance, Stage, Strategy

FP32 = 5e-5
# one-dimensional and several positions, windows, images by tokens of their own, tiles
FAMILIES = (
    "llava_onevision",
    "qwen2_vl",
    "qwen3_vl",
    "gemma3",
    "internvl",
    "llava_onevision-video",
)
every_metric = pytest.mark.parametrize("metric", ANSWER_METRICS)


def strategies(name: str) -> Mapping[str, Strategy]:
    """One with stages at layers 0 and 3, and one that goes by text attention."""
    layer = adapter_for(model_of(name)).vision_layers[-1]
    importance = Importance(vision_layer=layer, context_threshold=1.1)
    stages = (Stage(layer=0, keep_ratio=0.6), Stage(layer=3, keep_ratio=0.5))
    late = (Stage(layer=2, keep_ratio=0.4),)
    return {
        "vision": Strategy(name="vision", importance=importance, stages=stages),
        "text": Strategy(name="text", importance=Importance(score="text_attention"), stages=late),
    }


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", ["vision", "text"])
def test_a_dictated_answer_is_what_decoding_sees(name: str, kind: str) -> None:
    model, adapter = model_of(name), adapter_for(model_of(name))
    with pruned(model, strategies(name)[kind]):
        steps = generate(model, inputs_of(name))
        _, _, along = decoded(adapter, inputs_of(name), list(steps.ids), layers=False)
        with torch.no_grad():
            logits = model.get_output_embeddings()(along.hidden_PD)
    assert along.lengths == (NEW_TOKENS,) * len(steps.ids)
    torch.testing.assert_close(logits.view_as(steps.logits), steps.logits, rtol=0, atol=FP32)


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "gemma3"])
def test_logits_are_those_of_the_model(name: str) -> None:
    model, adapter, inputs = model_of(name), adapter_for(model_of(name)), inputs_of(name)
    with torch.no_grad():
        expected = model(**inputs, logits_to_keep=1).logits[:, -1]
        hidden = model.model(**inputs).last_hidden_state[:, -1]
    torch.testing.assert_close(through_head(adapter, hidden), expected, rtol=0, atol=FP32)


def test_a_model_that_lets_nobody_dictate_is_refused() -> None:
    model = model_of("janus")
    said = [torch.tensor([5, 6, 7]), torch.tensor([8]), torch.tensor([9, 4])]
    with pytest.raises(UnsupportedError, match="`generate` of janus models takes no logits"):
        decoded(adapter_for(model), inputs_of("janus"), said, layers=False)


def objective_of(metric: str, **options: Any) -> Objective:
    return build_objective(
        tiny_model("llava"), tiny_processor("llava"), small_set(), metric=metric, **options
    )


def test_answers_are_the_unpruned_models_up_to_their_end() -> None:
    model: Any = tiny_model("llava")
    ids = model.generate(**encode(tiny_processor("llava"), small_set().samples), max_new_tokens=16)
    told = ids[:, -16:]
    answers = objective_of("answer_kl").answers
    assert answers is not None
    for row, answer in zip(told, answers.answers, strict=True):
        assert torch.equal(answer, row[: len(answer)])
    # an answer ends where the model says so
    third = int(answers.answers[0][2])
    model.generation_config.eos_token_id = [third]
    ended = build_objective(model, tiny_processor("llava"), small_set(), metric="answer_kl").answers
    assert ended is not None
    place = answers.answers[0].tolist().index(third)
    assert ended.answers[0].tolist() == answers.answers[0].tolist()[: place + 1]


@every_metric
def test_what_is_measured_is_the_mean_over_the_answer(metric: str) -> None:
    """Against the whole sequence in one forward, sample by sample, without a cache."""
    objective = objective_of(metric, batch_size=3)
    strategy = strategy_of((0, 0.5), importance=Importance(vision_layer=1))
    model: Any = objective.adapter.model
    assert objective.answers is not None
    for i, sample in enumerate(small_set().samples):
        inputs = encode(tiny_processor("llava"), [sample])
        answer = objective.answers.answers[i]
        inputs["input_ids"] = torch.cat([inputs["input_ids"], answer[None, :-1]], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        readouts = []
        for one in (strategy_of((0, 1.0)), strategy):
            with pruned(model, one), torch.no_grad():
                hidden = model.model(**inputs).last_hidden_state[0, -len(answer) :]
                readouts.append(Readout(hidden[:, None], model.lm_head(hidden)))
        expected = divergence(ANSWER_METRICS[metric], *readouts).mean().item()
        [found] = objective.measure(strategy, [i])
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-6)
        assert found > 1e-4


def test_answers_come_from_disk_a_second_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy = strategy_of((0, 0.5))
    first = objective_of("answer_total_variation", cache=tmp_path).measure(strategy, range(7))
    assert len(list(tmp_path.glob("answers/*/answers.safetensors"))) == 1

    def asked_again(*args: Any) -> None:
        raise AssertionError("the unpruned model must not answer again")

    monkeypatch.setattr("vflowopt_search.reference.along_answer._ask", asked_again)
    second = objective_of("answer_total_variation", cache=tmp_path).measure(strategy, range(7))
    assert first == second


def test_portions_of_positions_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = adapter_for(model_of("llava"))
    hidden_PD = torch.randn(9, adapter.backbone.config.hidden_size)
    one = AlongAnswer(hidden_PD, (4, 1, 4))
    other = replace(one, hidden_PD=hidden_PD + 0.1 * torch.randn_like(hidden_PD))
    metrics = list(ANSWER_METRICS)
    whole = answer_divergences(metrics, adapter, one, other)
    monkeypatch.setattr("vflowopt_search.reference.along_answer.LOGITS_AT_ONCE", 1)
    parts = answer_divergences(metrics, adapter, one, other)
    for metric in metrics:
        torch.testing.assert_close(whole[metric], parts[metric])
        assert whole[metric].shape == (3,)
        assert answer_divergences([metric], adapter, one, one)[metric].max() == 0
