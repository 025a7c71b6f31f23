"""Scores by the name that a strategy file gives them."""

from __future__ import annotations

from collections.abc import Callable

from vflowopt_search.errors import StrategyError
from vflowopt_search.importance.scores import (
    ImportanceScore,
    RandomScore,
    ReceivedAttention,
    TextAttention,
    UniformGrid,
)
from vflowopt_search.strategy import Importance

SCORES: dict[str, Callable[[Importance], ImportanceScore]] = {
    "random": lambda importance: RandomScore(importance.seed),
    "received_attention": lambda importance: ReceivedAttention(
        importance.context_threshold, importance.entropy_weight
    ),
    "text_attention": lambda importance: TextAttention(),
    "uniform": lambda importance: UniformGrid(),
}


def make_score(importance: Importance, name: str | None = None) -> ImportanceScore:
    """The score that `importance` describes, or the one called `name` with its parameters.

    Raises StrategyError if no score has that name.
    """
    name = importance.score if name is None else name
    if name not in SCORES:
        raise StrategyError(
            f"no importance score is called {name!r}; use one of {', '.join(sorted(SCORES))}"
        )
    return SCORES[name](importance)
