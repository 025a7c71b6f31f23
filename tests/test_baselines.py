"""Plain strategies: all at the budget, each ranked as its name says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.fake_study import FACTS
from vflowopt_search.baselines import baseline_strategies
from vflowopt_search.budget import mean_retained
from vflowopt_search.errors import StrategyError
from vflowopt_search.importance.registry import make_score
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
