"""Plain strategies that every search is compared with, at the very same budget."""

from __future__ import annotations

from vflowopt_search.search_space import ModelFacts
from vflowopt_search.strategy import Budget, Importance, Stage, Strategy


def baseline_strategies(facts: ModelFacts, retain: float) -> dict[str, Strategy]:
    """Strategies by name that drop everything before the language model (algorithms 3).

    `random` draws tokens, `uniform` keeps a regular sub-grid, and `attention` the tokens that
    receive most attention in the last vision layer that can be read. The last is left out of a
    model whose vision attention cannot be read.

    Args:
        facts: the model that the strategies name.
        retain: share of visual tokens to keep, in (0, 1].

    Raises:
        StrategyError: `retain` is out of range.
    """
    rankings = {"random": Importance(score="random"), "uniform": Importance(score="uniform")}
    if facts.vision_layers_available:
        rankings["attention"] = Importance(
            score="received_attention", vision_layer=facts.vision_layers_available[-1]
        )
    return {
        name: Strategy(
            name=name,
            model=facts.identity,
            importance=importance,
            stages=(Stage(layer=0, keep_ratio=retain),),
            separators="drop",
            budget=Budget(mean_retained=retain),
        )
        for name, importance in rankings.items()
    }
