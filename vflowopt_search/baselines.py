"""Baselines that every search is compared with, at the very same budget (algorithms 3)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from types import MappingProxyType

from vflowopt_search.errors import StrategyError
from vflowopt_search.search_space import ModelFacts
from vflowopt_search.strategy import Budget, Importance, Stage, Strategy

FASTV_LAYER = 2
PYRAMID_DEPTHS = (Fraction(1, 4), Fraction(1, 2), Fraction(3, 4))
PLAIN = ("random", "uniform", "attention")
"""Those that a search is compared with: they exist at every budget."""


def baseline_strategies(facts: ModelFacts, retain: float) -> dict[str, Strategy]:
    """Strategies by name that drop everything before the language model.

    `random` draws tokens, once (see `baseline`), `uniform` keeps a regular sub-grid, and
    `attention` the tokens that receive most attention in the last vision layer that can be read.
    The last is left out of a model whose vision attention cannot be read.

    Args:
        facts: the model that the strategies name.
        retain: share of visual tokens to keep, in (0, 1].

    Raises:
        StrategyError: `retain` is out of range.
    """
    names = [name for name in PLAIN if name != "attention" or facts.vision_layers_available]
    return {name: baseline(name, facts, retain) for name in names}


def baseline(name: str, facts: ModelFacts, retain: float) -> Strategy:
    """One baseline; besides those of `baseline_strategies`, the published ones.

    `fastv` keeps everything up to decoder layer 2 and then goes by the attention of the last
    prompt token; `pyramiddrop` does so at 1/4, 1/2 and 3/4 of the depth, by a constant factor.
    `random` is one draw, the same for all images of as many tokens; `random:1` is another, and
    several of them show how much is luck.

    Args:
        name: one of `BASELINES`, or `random:` and a seed.
        facts: the model that the strategy names.
        retain: share of visual tokens to keep, mean over decoder layers, in (0, 1].

    Raises:
        StrategyError: no such baseline, or it does not exist at this budget or on this model.
    """
    if not is_baseline(name):
        raise StrategyError(f"no baseline is called {name!r}; use one of {', '.join(NAMES)}")
    if not 0 < retain <= 1:
        raise StrategyError(f"keep_ratio {retain} of a baseline must be in (0, 1]; change it")
    kind, _, seed = name.partition(":")
    importance, stages = BASELINES[kind](facts, retain)
    return Strategy(
        name=name,
        model=facts.identity,
        importance=importance.model_copy(update={"seed": int(seed)}) if seed else importance,
        stages=tuple(stages),
        separators="drop",
        budget=Budget(mean_retained=retain),
    )


def is_baseline(name: str) -> bool:
    """Whether `baseline` knows a name."""
    return name in BASELINES or re.fullmatch(r"random:[0-9]+", name) is not None


_Parts = tuple[Importance, Sequence[Stage]]


def _random(facts: ModelFacts, retain: float) -> _Parts:
    return Importance(score="random"), [Stage(layer=0, keep_ratio=retain)]


def _uniform(facts: ModelFacts, retain: float) -> _Parts:
    return Importance(score="uniform"), [Stage(layer=0, keep_ratio=retain)]


def _attention(facts: ModelFacts, retain: float) -> _Parts:
    if not facts.vision_layers_available:
        raise StrategyError(
            "the baseline 'attention' reads the vision encoder's attention, which this model does "
            "not show; use another baseline"
        )
    layer = facts.vision_layers_available[-1]
    importance = Importance(score="received_attention", vision_layer=layer)
    return importance, [Stage(layer=0, keep_ratio=retain)]


def _fastv(facts: ModelFacts, retain: float) -> _Parts:
    depth = facts.identity.decoder_layers
    before = min(FASTV_LAYER, depth - 1)
    ratio = (retain * depth - before) / (depth - before)
    _require_room("fastv", ratio, retain, before / depth)
    return _by_text(facts), [Stage(layer=before, keep_ratio=ratio)]


def _pyramiddrop(facts: ModelFacts, retain: float) -> _Parts:
    depth = facts.identity.decoder_layers
    layers = sorted({max(1, round(depth * share)) for share in PYRAMID_DEPTHS})
    _require_room("pyramiddrop", retain * depth - layers[0], retain, layers[0] / depth)
    ratio = _constant_factor(layers, depth, retain)
    return _by_text(facts), [Stage(layer=layer, keep_ratio=ratio) for layer in layers]


def _constant_factor(layers: Sequence[int], depth: int, retain: float) -> float:
    """The factor whose powers, one more from each layer on, retain exactly this; by bisection."""
    runs = [end - start for start, end in zip(layers, [*layers[1:], depth], strict=True)]

    def retained(factor: float) -> float:
        later = sum(run * factor**power for power, run in enumerate(runs, start=1))
        return (layers[0] + later) / depth

    low, high = 0.0, 1.0
    while low < (middle := (low + high) / 2) < high:
        low, high = (low, middle) if retained(middle) >= retain else (middle, high)
    return high


def _by_text(facts: ModelFacts) -> Importance:
    if "text_attention" not in facts.scores:
        raise StrategyError(
            "this baseline goes by attention inside the decoder, which this model does not show; "
            "use another one"
        )
    return Importance(score="text_attention")


def _require_room(name: str, room: float, retain: float, least: float) -> None:
    if room <= 0:
        raise StrategyError(
            f"{name} keeps all visual tokens of its first layers, {least:.1%} on this model, and "
            f"cannot retain {retain:.1%}; ask for a larger budget with --retain, or for another "
            "baseline"
        )


BASELINES: Mapping[str, Callable[[ModelFacts, float], _Parts]] = MappingProxyType(
    {
        "random": _random,
        "uniform": _uniform,
        "attention": _attention,
        "fastv": _fastv,
        "pyramiddrop": _pyramiddrop,
    }
)
NAMES = ("random", "random:SEED", *(name for name in BASELINES if name != "random"))
"""How they are named, for people."""
