"""Baselines: all at the budget, each ranked as its name says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.fake_study import FACTS
from vflowopt_search.baselines import BASELINES, baseline, baseline_strategies
from vflowopt_search.budget import mean_retained
from vflowopt_search.errors import StrategyError
from vflowopt_search.importance.registry import make_score
from vflowopt_search.search_space import ModelFacts
from vflowopt_search.strategy import Strategy


@pytest.mark.parametrize("retain", [0.05, 0.1, 1.0])
def test_baselines_are_at_the_budget(retain: float) -> None:
    baselines = baseline_strategies(FACTS, retain)
    assert list(baselines) == ["random", "uniform", "attention"]
    for name, strategy in baselines.items():
        assert strategy.name == name and strategy.budget is not None
        assert strategy.budget.mean_retained == retain
        assert mean_retained(strategy.stages, 8) == pytest.approx(retain, abs=1e-12)
        assert [stage.layer for stage in strategy.stages] == [0]
        assert strategy.recycling is None and strategy.separators == "drop"
        assert Strategy.loads(strategy.to_json()) == strategy
        make_score(strategy.importance)


def test_attention_is_of_the_last_layer_that_can_be_read() -> None:
    facts = replace(FACTS, vision_layers_available=(1, 4))
    attention = baseline_strategies(facts, 0.1)["attention"].importance
    assert (attention.score, attention.vision_layer) == ("received_attention", 4)
    assert attention.context_threshold == attention.entropy_weight == 0


def test_a_model_without_readable_attention_has_no_attention_baseline() -> None:
    facts = replace(FACTS, vision_layers_available=())
    assert list(baseline_strategies(facts, 0.1)) == ["random", "uniform"]


def test_a_budget_out_of_range_is_refused() -> None:
    with pytest.raises(StrategyError, match="keep_ratio"):
        baseline_strategies(FACTS, 1.5)


@pytest.mark.parametrize("retain", [0.30, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_is_at_the_budget(name: str, retain: float) -> None:
    strategy = baseline(name, FACTS, retain)
    assert mean_retained(strategy.stages, 8) == pytest.approx(retain, abs=1e-12)
    assert Strategy.loads(strategy.to_json()) == strategy


def test_draws_of_the_random_baseline_differ_by_their_seed_alone() -> None:
    first, same, other = (baseline(name, FACTS, 0.3) for name in ("random", "random:0", "random:1"))
    assert (first.importance.seed, other.importance.seed, other.name) == (0, 1, "random:1")
    assert same.importance == first.importance
    assert make_score(other.importance) != make_score(first.importance)
    assert other.stages == first.stages and other.budget == first.budget


def test_published_baselines_prune_where_their_papers_say() -> None:
    deep = replace(FACTS, identity=FACTS.identity.model_copy(update={"decoder_layers": 28}))
    fastv = baseline("fastv", deep, 0.10)
    assert fastv.importance.score == "text_attention"
    assert [stage.layer for stage in fastv.stages] == [2]
    assert fastv.stages[0].keep_ratio == pytest.approx(0.8 / 26)
    pyramid = baseline("pyramiddrop", deep, 0.46875)
    assert [stage.layer for stage in pyramid.stages] == [7, 14, 21]
    # (1 + 1/2 + 1/4 + 1/8) / 4
    assert [stage.keep_ratio for stage in pyramid.stages] == pytest.approx([0.5] * 3)


@pytest.mark.parametrize(
    ("name", "retain", "facts", "sentence"),
    [
        ("fastv", 0.25, FACTS, "fastv keeps all visual tokens of its first layers, 25.0% on this"),
        ("pyramiddrop", 0.2, FACTS, "pyramiddrop keeps all .* cannot retain 20.0%; ask for a"),
        ("fastv", 0.5, replace(FACTS, scores=("uniform",)), "attention inside the decoder, which"),
        ("attention", 0.5, replace(FACTS, vision_layers_available=()), "the vision encoder's"),
        ("best", 0.5, FACTS, "no baseline is called 'best'; use one of random, random:SEED, uni"),
        (
            "uniform:1",
            0.5,
            FACTS,
            "no baseline is called 'uniform:1'; use one of random, random:SEED, uni",
        ),
        (
            "random:x",
            0.5,
            FACTS,
            "no baseline is called 'random:x'; use one of random, random:SEED, uni",
        ),
    ],
)
def test_a_baseline_that_cannot_be_had(
    name: str, retain: float, facts: ModelFacts, sentence: str
) -> None:
    with pytest.raises(StrategyError, match=sentence):
        baseline(name, facts, retain)
