"""Which strategies a validation looks at: good and bad ones, found ones and fresh ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from math import log
from typing import Any

import numpy as np

from vflowopt_search.errors import EvaluationError
from vflowopt_search.evaluate.queue import content_of
from vflowopt_search.race import DrawsStrategies
from vflowopt_search.strategy import Strategy

FEWEST = 8
"""A rank correlation of fewer strategies says nothing."""
MOST_TRIES = 100
LEAST = 1e-9  # a divergence below counts as this much


@dataclass(frozen=True)
class Tried:
    """A trial of a study: its number, its strategy, and the divergence that it measured."""

    number: int
    strategy: Strategy
    value: float


@dataclass(frozen=True)
class Chosen:
    """A strategy of the spread.

    Attributes:
        name: `trial 12` or `fresh 3`.
        origin: why it is there: `along`, `random` or `fresh`.
    """

    name: str
    origin: str
    strategy: Strategy


def spread(
    tried: Sequence[Tried], space: DrawsStrategies, retain: float, num: int, seed: int
) -> list[Chosen]:
    """A third along the study's divergences, a third of its trials at random, the rest fresh.

    A search gathers its trials where the divergence is low; those along its divergences are
    evenly spaced between the lowest and the highest (on a logarithmic scale), and fresh ones are
    drawn from the space, at the same budget. No two prune in the same way.

    Args:
        tried: the study's measured trials.
        space: what was searched.
        retain: budget of the fresh ones.
        num: how many in all; fewer where the study and the space do not have as many.
        seed: of all that is random.

    Raises:
        EvaluationError: so few are too few.
    """
    rng = np.random.default_rng(seed)
    distinct = list({_sha(one.strategy): one for one in reversed(tried)}.values())[::-1]
    along = _evenly_spaced(distinct, num // 3)
    left = [one for one in distinct if one not in along]
    places = rng.permutation(len(left))[: num // 3].tolist()
    chosen = [Chosen(f"trial {one.number}", "along", one.strategy) for one in along]
    chosen += [Chosen(f"trial {left[i].number}", "random", left[i].strategy) for i in places]
    chosen += _fresh(space, retain, num - len(chosen), rng, {_sha(one.strategy) for one in chosen})
    if len(chosen) < FEWEST:
        raise EvaluationError(
            f"{len(chosen)} strategies are too few to tell whether a divergence predicts accuracy; "
            f"ask for {FEWEST} or more"
        )
    return chosen


def _evenly_spaced(tried: Sequence[Tried], num: int) -> list[Tried]:
    """The nearest to each of `num` steps from the lowest divergence to the highest, best first."""
    left = sorted(tried, key=lambda one: (one.value, one.number))
    heights = [log(max(one.value, LEAST)) for one in left]
    found: list[Tried] = []
    for target in np.linspace(heights[0], heights[-1], num) if heights else []:
        if not left:
            break
        nearest = int(np.argmin([abs(height - target) for height in heights]))
        found.append(left.pop(nearest))
        heights.pop(nearest)
    return found


def _fresh(
    space: DrawsStrategies, retain: float, num: int, rng: np.random.Generator, taken: set[str]
) -> list[Chosen]:
    found: list[Chosen] = []
    for attempt in count():
        if len(found) == num or attempt == num + MOST_TRIES:
            return found
        name = f"fresh {len(found)}"
        strategy = space.suggest(_Drawn(rng), retain, name)
        if _sha(strategy) not in taken:
            taken.add(_sha(strategy))
            found.append(Chosen(name, "fresh", strategy))
    return found


def _sha(strategy: Strategy) -> str:
    return json.dumps(content_of(strategy), sort_keys=True)


class _Drawn:
    """A trial that draws every parameter at random."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """A number within [low, high]."""
        if step is not None:
            return low + step * int(self._rng.integers(int((high - low) / step + 1e-9) + 1))
        if log:
            return float(np.exp(self._rng.uniform(np.log(low), np.log(high))))
        return float(self._rng.uniform(low, high))

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        """A whole number within [low, high]."""
        if log:
            return min(high, int(np.exp(self._rng.uniform(np.log(low), np.log(high + 1)))))
        return low + step * int(self._rng.integers((high - low) // step + 1))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of several."""
        return choices[int(self._rng.integers(len(choices)))]
