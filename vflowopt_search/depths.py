"""From shares of a model's depth to decoder layers, and back."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from pydantic import AfterValidator

from vflowopt_search.errors import SearchSpaceError
from vflowopt_search.parameters import Parameter, Scalar

_SHARE = re.compile(r"([1-9]\d{0,3})/([1-9]\d{0,3})")


def share_of_depth(written: Scalar) -> Scalar:
    """The share itself, if it is `0` or `p/q` below 1; raises ValueError otherwise."""
    if isinstance(written, str) and (match := _SHARE.fullmatch(written)):
        if int(match[1]) < int(match[2]):
            return written
    elif written == 0 and not isinstance(written, (bool, str)):
        return written
    raise ValueError(f"{written!r} is not a share of the depth, 0 or p/q below 1; write one")


def depth() -> AfterValidator:
    """A rule for a `Parameter`: a fixed share of the depth, or a plain range within [0, 1]."""

    def check(parameter: Parameter) -> Parameter:
        if parameter.fixed is not None:
            share_of_depth(parameter.fixed)
        elif parameter.choices is not None or parameter.log or parameter.step is not None:
            raise ValueError(
                "must be a fixed share of the depth, or low and high alone; write one of them"
            )
        elif not 0 <= parameter.bounds[0] < parameter.bounds[1] <= 1:
            raise ValueError(
                f"the range is {parameter.bounds} but must be within 0 to 1; correct it"
            )
        return parameter

    return AfterValidator(check)


def layer_at(share: Scalar, num_layers: int) -> int:
    """Decoder layer at a share of the depth: `p/q` is layer `p * (num_layers // q)`.

    So `1/3` and `2/3` are 9 and 18 of 28, 10 and 20 of 32: the published layers.
    """
    if share == 0:
        return 0
    numerator, denominator = (int(part) for part in str(share).split("/"))
    return numerator * (num_layers // denominator)


def stage_layers(
    depths: Sequence[Parameter], num_layers: int, fraction: Callable[[int], float]
) -> list[int]:
    """Strictly increasing layers below `num_layers`, one for each of `depths`.

    A range asks for `fraction(stage)` in [0, 1] (stages from 0): the place among the layers
    that are free below the stage before, when each later stage still needs a layer.
    """
    layers: list[int] = []
    for stage, parameter in enumerate(depths):
        if parameter.fixed is not None:
            layers.append(layer_at(parameter.fixed, num_layers))
        else:
            window = _window(depths, stage, layers[-1], num_layers)
            layers.append(_layer_in(window, fraction(stage)))
    return layers


def fractions_for(
    depths: Sequence[Parameter], shares: Sequence[Scalar], num_layers: int
) -> dict[int, float]:
    """What `stage_layers` has to be told, per stage that asks, to stop at the wanted shares.

    On a model with fewer layers than shares, the nearest free layer stands for a wanted one.

    Raises:
        SearchSpaceError: a range does not reach the layer.
    """
    fractions: dict[int, float] = {}
    layer = -1
    for stage, (parameter, share) in enumerate(zip(depths, shares, strict=True)):
        if parameter.fixed is not None:
            layer = layer_at(parameter.fixed, num_layers)
            continue
        window = _window(depths, stage, layer, num_layers)
        layer = min(max(layer_at(share, num_layers), window[0]), window[-1])
        fractions[stage] = _fraction_of(layer, window, parameter)
    return fractions


def _fraction_of(layer: int, window: range, parameter: Parameter) -> float:
    low, high = parameter.bounds
    fraction = min(max((window.index(layer) + 0.5) / len(window), low), high)
    if _layer_in(window, fraction) != layer:
        raise SearchSpaceError(
            f"a starting point prunes at layer {layer} but the range {low} to {high} of the free "
            f"layers {window[0]} to {window[-1]} does not reach it; widen the range"
        )
    return fraction


def check_room(depths: Sequence[Parameter], num_layers: int) -> None:
    """Refuse a model in which the stages cannot stand at strictly increasing layers.

    Raises:
        SearchSpaceError: names the stage that has no layer left.
    """
    previous = -1
    for stage, parameter in enumerate(depths):
        window = _window(depths, stage, previous, num_layers)
        previous = window.start
        if parameter.fixed is not None:
            previous = layer_at(parameter.fixed, num_layers)
        if previous not in window:
            raise SearchSpaceError(
                f"a model of {num_layers} decoder layers has no free layer for stage {stage + 1} "
                f"of {len(depths)}; search fewer stages or other depths"
            )


def _window(depths: Sequence[Parameter], stage: int, previous: int, num_layers: int) -> range:
    """Layers free for a stage, with one left for each later stage and none past a fixed one."""
    last = num_layers - (len(depths) - stage)
    for later in range(stage + 1, len(depths)):
        fixed = depths[later].fixed
        if fixed is not None:
            last = min(last, layer_at(fixed, num_layers) - (later - stage))
    return range(previous + 1, last + 1)


def _layer_in(window: range, fraction: float) -> int:
    return window[min(len(window) - 1, int(fraction * len(window)))]
