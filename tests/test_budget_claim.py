"""What a strategy says that it retains holds, or the strategy is refused."""

from __future__ import annotations

import pytest

from vflowopt_search.budget import check_claim, mean_retained
from vflowopt_search.errors import StrategyError
from vflowopt_search.strategy import Budget, Importance, Stage, Strategy

DEPTH = 28


def claiming(retain: float) -> Strategy:
    """Half of the tokens in every layer, and what it says of that."""
    half = (Stage(layer=0, keep_ratio=0.5),)
    claim = Budget(mean_retained=retain)
    return Strategy(name="half", importance=Importance(score="random"), stages=half, budget=claim)


@pytest.mark.parametrize("retain", [0.4991, 0.5, 0.5009])
def test_a_claim_holds_to_a_tenth_of_a_per_cent_of_the_tokens(retain: float) -> None:
    stages = claiming(retain).stages
    assert abs(mean_retained(stages, DEPTH) - retain) < 1e-3
    check_claim(claiming(retain), DEPTH)


@pytest.mark.parametrize("retain", [0.4989, 0.5011, 0.55, 1.0])
def test_a_claim_further_off_is_refused(retain: float) -> None:
    said = (
        rf"'half' says that it retains {retain:.4f} but its stages keep 0\.5000 on 28 .*; correct"
    )
    with pytest.raises(StrategyError, match=said):
        check_claim(claiming(retain), DEPTH)
