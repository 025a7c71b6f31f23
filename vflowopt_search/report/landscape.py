"""How divergence depends on the parameters: records that figures draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isclose, log
from typing import Any

from optuna import Study
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial

from vflowopt_search.report.frames import measured_trials
from vflowopt_search.trials import best_full, is_full, value_of

BEST_SHARE, GOOD_SHARE = 0.1, 0.4
"""Of all measured trials, how many the two leading groups of parallel coordinates have."""
MOST_POINTS, MOST_LINES = 1000, 500
"""So many trials are drawn of a long study; more would make a page large and a figure black."""
_MOST_STEPS = 6
"""A whole number that takes so many steps from end to end has a label at each."""
GROUPS = ("lowest tenth", "next three tenths", "the others")


@dataclass(frozen=True)
class Slice:
    """Divergence of the trials against the value of one parameter."""

    parameter: str
    value: list[float | str]
    divergence: list[float]
    full: list[bool]
    """Whether all samples were measured."""
    best: int | None
    """Row of the best trial; None where it does not have the parameter."""
    log: bool
    choices: list[str]
    """Of a categorical parameter, in the order of the search space; empty of others."""
    trial: list[int]


@dataclass(frozen=True)
class Axis:
    """One parameter's scale, from 0 to 1."""

    parameter: str
    place: list[float]
    label: list[str]
    """At each of the places, the parameter's value."""


@dataclass(frozen=True)
class ParallelCoordinates:
    """Each trial as a line over all parameters."""

    axes: list[Axis]
    trial: list[int]
    divergence: list[float]
    group: list[str]
    """Which of `GROUPS`; the tenth of lowest divergence comes first, its best trial before all."""
    place: list[list[float | None]]
    """One row per trial: its place on each axis, None for a parameter that it does not have."""


def slices(study: Study, order: Sequence[str] = (), most: int = MOST_POINTS) -> list[Slice]:
    """One for each parameter that varied; those named in `order` come first, in that order.

    Of a study with more than `most` measured trials, the best are shown and an even share of the
    others.
    """
    measured = _thinned(measured_trials(study), most)
    best = best_full(measured)
    found = [_slice(name, kind, measured, best) for name, kind in _parameters(measured, order)]
    return [one for one in found if len(set(map(str, one.value))) > 1]


def parallel_coordinates(
    study: Study, order: Sequence[str] = (), most: int = MOST_LINES
) -> ParallelCoordinates:
    """Of the measured trials, best first: those measured wholly, then those stopped early."""
    measured = sorted(_thinned(measured_trials(study), most), key=_rank)
    parameters = _parameters(measured, order)
    ends = [_ends(name, kind, measured) for name, kind in parameters]
    return ParallelCoordinates(
        axes=[_axis(*pair, end) for pair, end in zip(parameters, ends, strict=True)],
        trial=[trial.number for trial in measured],
        divergence=[value_of(trial) for trial in measured],
        group=[_group(rank, len(measured)) for rank in range(len(measured))],
        place=[
            [
                _place(trial.params[name], kind, end) if name in trial.params else None
                for (name, kind), end in zip(parameters, ends, strict=True)
            ]
            for trial in measured
        ],
    )


def _rank(trial: FrozenTrial) -> tuple[bool, float, int]:
    return not is_full(trial), value_of(trial), trial.number


def _thinned(measured: Sequence[FrozenTrial], most: int) -> list[FrozenTrial]:
    """At most `most` trials: the better half of them as they rank, the others evenly."""
    if len(measured) <= most:
        return list(measured)
    ranked = sorted(measured, key=_rank)
    first, rest = ranked[: most // 2], ranked[most // 2 :]
    left = most - len(first)
    return first + [rest[i * len(rest) // left] for i in range(left)]


def _parameters(
    measured: Sequence[FrozenTrial], order: Sequence[str]
) -> list[tuple[str, BaseDistribution]]:
    """Name and distribution of every parameter that some trial has."""
    kinds: dict[str, BaseDistribution] = {}
    for trial in measured:
        for name, kind in trial.distributions.items():
            kinds.setdefault(name, kind)
    rank = {name: place for place, name in enumerate(order)}
    return sorted(kinds.items(), key=lambda item: (rank.get(item[0], len(rank)), item[0]))


def _slice(
    name: str, kind: BaseDistribution, measured: Sequence[FrozenTrial], best: FrozenTrial | None
) -> Slice:
    having = [trial for trial in measured if name in trial.params]
    choices = [_text(choice) for choice in _choices(kind)]
    return Slice(
        parameter=name,
        value=[_text(t.params[name]) if choices else float(t.params[name]) for t in having],
        divergence=[value_of(trial) for trial in having],
        full=[is_full(trial) for trial in having],
        best=next((row for row, trial in enumerate(having) if trial is best), None),
        log=_is_log(kind),
        choices=choices,
        trial=[trial.number for trial in having],
    )


def _ends(
    name: str, kind: BaseDistribution, measured: Sequence[FrozenTrial]
) -> tuple[float, float]:
    """The range of a numeric parameter: as searched, or wider where a trial was given more."""
    if isinstance(kind, CategoricalDistribution):
        return 0.0, float(len(kind.choices) - 1)
    values = [float(trial.params[name]) for trial in measured if name in trial.params]
    assert isinstance(kind, FloatDistribution | IntDistribution)
    return min(kind.low, *values), max(kind.high, *values)


def _axis(name: str, kind: BaseDistribution, ends: tuple[float, float]) -> Axis:
    choices = _choices(kind)
    if choices:
        return Axis(name, [_place(each, kind, ends) for each in choices], list(map(_text, choices)))
    low, high = ends
    if isinstance(kind, IntDistribution) and 1 < high - low <= _MOST_STEPS and not kind.log:
        steps = range(round(low), round(high) + 1)
        return Axis(name, [_place(step, kind, ends) for step in steps], list(map(str, steps)))
    return Axis(name, [0.0, 1.0], [_number(low), _number(high)])


def _place(value: Any, kind: BaseDistribution, ends: tuple[float, float]) -> float:
    if isinstance(kind, CategoricalDistribution):
        at = float(kind.choices.index(value))
        return at / ends[1] if ends[1] else 0.5
    low, high = ends
    if isclose(low, high):
        return 0.5
    if _is_log(kind) and low > 0:
        return log(value / low) / log(high / low)
    return (float(value) - low) / (high - low)


def _group(rank: int, count: int) -> str:
    if rank < max(1, round(BEST_SHARE * count)):
        return GROUPS[0]
    return GROUPS[1] if rank < round(GOOD_SHARE * count) else GROUPS[2]


def _choices(kind: BaseDistribution) -> Sequence[Any]:
    return kind.choices if isinstance(kind, CategoricalDistribution) else ()


def _is_log(kind: BaseDistribution) -> bool:
    return isinstance(kind, FloatDistribution | IntDistribution) and kind.log


def _text(choice: Any) -> str:
    return ("yes" if choice else "no") if isinstance(choice, bool) else str(choice)


def _number(value: float) -> str:
    return f"{value:.3g}"
