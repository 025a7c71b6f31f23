"""What a strategy keeps and what it costs: tokens per layer, mean retained, FLOPs, KV bytes.

Everything here is arithmetic on numbers: no model, no device, no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from vflowopt_search.errors import BudgetError, StrategyError
from vflowopt_search.strategy import Stage, Strategy

_LEAST_RATIO = 1e-9
_CLAIM_TOLERANCE = 1e-3


def alive_ratios(stages: Sequence[Stage], num_layers: int) -> list[float]:
    """Share of the visual tokens alive in each decoder layer, before rounding to whole tokens."""
    return [_product_until(stages, layer) for layer in range(num_layers)]


def mean_retained(stages: Sequence[Stage], num_layers: int) -> float:
    """Share of visual tokens alive, averaged over decoder layers (algorithms 1.4)."""
    return sum(alive_ratios(stages, num_layers)) / num_layers


def check_claim(strategy: Strategy, num_layers: int) -> None:
    """Refuse a strategy whose stages do not keep what its `budget` says, to 0.1 % of the tokens.

    Raises:
        StrategyError: a ratio or layer was edited by hand, say, and the budget was not.
    """
    kept = mean_retained(strategy.stages, num_layers)
    if strategy.budget is not None and abs(kept - strategy.budget.mean_retained) > _CLAIM_TOLERANCE:
        raise StrategyError(
            f"strategy {strategy.name!r} says that it retains {strategy.budget.mean_retained:.4f} "
            f"but its stages keep {kept:.4f} on {num_layers} decoder layers; correct "
            f"budget.mean_retained or the stages"
        )


def kept_counts(stages: Sequence[Stage], num_tokens: int) -> list[int]:
    """Visual tokens alive from each stage on; at least 1 of a sample that has any.

    Rounded from the product of the ratios, so that rounding errors do not add up over stages.
    """
    return [_rounded(num_tokens, _product_until(stages, stage.layer)) for stage in stages]


def tokens_per_layer(stages: Sequence[Stage], num_tokens: int, num_layers: int) -> list[int]:
    """Visual tokens alive in each decoder layer of a sample that has `num_tokens`."""
    return [_rounded(num_tokens, alive) for alive in alive_ratios(stages, num_layers)]


def _product_until(stages: Sequence[Stage], layer: int) -> float:
    """Product of the keep ratios of all stages up to `layer`; never rises from layer to layer."""
    alive = 1.0
    for stage in stages:
        if stage.layer <= layer:
            alive *= stage.keep_ratio
    return alive


def _rounded(num_tokens: int, alive: float) -> int:
    return max(min(num_tokens, 1), round(num_tokens * alive))


def close_budget(
    layers: Sequence[int], relative: Sequence[float], num_layers: int, retain: float
) -> list[float]:
    """Keep ratios, one per stage, whose mean retained is exactly `retain` (to 1e-9).

    Searched are only the *relative* ratios of the stages after the first; one scale `c` closes
    the budget: the first stage keeps `min(1, c)`, a later one `min(1, r * max(1, c))`. A larger
    scale never retains less, so the solution is unique up to ratios that are clipped at 1.

    Args:
        layers: strictly increasing decoder layers of the stages.
        relative: one ratio from 1e-9 to 1 for each stage after the first.
        num_layers: decoder layers of the model.
        retain: share of visual tokens alive, averaged over layers, in (0, 1].

    Raises:
        BudgetError: `retain` or a relative ratio is out of range, the layers do not increase
            within the model, or the tokens alive before the first stage are too many already.
    """
    _check_stages(layers, relative, num_layers)
    lowest = layers[0] / num_layers
    if not (lowest < retain <= 1):
        raise BudgetError(
            f"a mean retained of {retain} cannot be met with the first stage at layer {layers[0]} "
            f"of {num_layers}: it must be above {lowest:.4g} and at most 1; ask for another "
            f"budget or prune earlier"
        )

    def retained(ratios: Sequence[float]) -> float:
        stages = [Stage(layer=k, keep_ratio=r) for k, r in zip(layers, ratios, strict=True)]
        return mean_retained(stages, num_layers)

    if retain == 1:  # exactly, for a ratio of 1 leaves the model bit-identical
        return [1.0] * len(layers)
    everything_first = retained([1.0, *relative])
    if retain <= everything_first:
        return [(retain - lowest) / (everything_first - lowest), *relative]
    return [1.0, *_lifted(relative, lambda later: retained([1.0, *later]) < retain)]


def _lifted(
    relative: Sequence[float], too_few: Callable[[Sequence[float]], bool]
) -> Sequence[float]:
    """`min(1, r * c)` for the least scale c >= 1 that is not too few, by bisection on u = 1/c."""
    enough, not_enough = min(relative), 1.0
    while enough < (middle := (enough + not_enough) / 2) < not_enough:
        if too_few([min(1.0, ratio / middle) for ratio in relative]):
            not_enough = middle
        else:
            enough = middle
    return [min(1.0, ratio / enough) for ratio in relative]


def _check_stages(layers: Sequence[int], relative: Sequence[float], num_layers: int) -> None:
    if len(layers) != len(relative) + 1:
        raise BudgetError(
            f"{len(relative)} relative ratios are given for {len(layers)} stages, but each stage "
            f"after the first needs one; give {max(len(layers), 1) - 1}"
        )
    if list(layers) != sorted(set(layers)) or layers[0] < 0 or layers[-1] >= num_layers:
        raise BudgetError(
            f"stages are at layers {list(layers)} but layers must increase strictly from 0 to "
            f"{num_layers - 1}; choose other layers"
        )
    for ratio in relative:
        if not _LEAST_RATIO <= ratio <= 1:
            raise BudgetError(
                f"a relative ratio is {ratio} but must be from {_LEAST_RATIO} to 1; correct it"
            )


@dataclass(frozen=True)
class VisionShape:
    """Sizes of a vision encoder with plain two-matrix feed-forward layers.

    Args:
        layers: encoder layers that run.
        hidden_size: width.
        intermediate_size: width of the feed-forward part.
        tokens_per_tile: patches of one tile, image or frame; attention stays within it.
    """

    layers: int
    hidden_size: int
    intermediate_size: int
    tokens_per_tile: int


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder with gated feed-forward layers, and of its vision encoder if wanted."""

    decoder_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    vision: VisionShape | None = None


def prefill_flops(
    shape: ModelShape,
    visual_per_layer: Sequence[int],
    text_tokens: int,
    *,
    lm_head: Literal["last", "all"] = "last",
    tiles: int = 0,
) -> float:
    """Floating-point operations of one sample's prefill.

    Two per weight and token, and `4 n^2` per attention channel with the causal half not taken
    off, as the field counts; norms, biases, embeddings and the projector are left out.

    Args:
        shape: sizes of the model.
        visual_per_layer: visual tokens alive in each decoder layer.
        text_tokens: all other tokens; they are alive in every layer.
        lm_head: logits of the last position only, as in generation, or of all positions.
        tiles: tiles through the vision encoder; 0 leaves it out.

    Raises:
        BudgetError: not one count per decoder layer, or tiles without a vision shape.
    """
    lengths = _lengths(shape, visual_per_layer, text_tokens)
    positions = lengths[-1] if lm_head == "all" else 1
    head = 2.0 * shape.hidden_size * shape.vocab_size * positions
    return sum(_decoder_layer_flops(shape, n) for n in lengths) + head + _vision_flops(shape, tiles)


def kv_bytes(
    shape: ModelShape,
    visual_per_layer: Sequence[int],
    text_tokens: int,
    *,
    bytes_per_value: int = 2,
) -> int:
    """Bytes of one sample's KV cache after the prefill, grouped-query sharing counted.

    Raises:
        BudgetError: not one count of visual tokens per decoder layer.
    """
    per_token = 2 * shape.num_kv_heads * shape.head_dim * bytes_per_value
    return per_token * sum(_lengths(shape, visual_per_layer, text_tokens))


def _lengths(shape: ModelShape, visual_per_layer: Sequence[int], text_tokens: int) -> list[int]:
    if len(visual_per_layer) != shape.decoder_layers:
        raise BudgetError(
            f"{len(visual_per_layer)} token counts are given but the model has "
            f"{shape.decoder_layers} decoder layers; give one count per layer"
        )
    return [visual + text_tokens for visual in visual_per_layer]


def _decoder_layer_flops(shape: ModelShape, tokens: int) -> float:
    attention_width = shape.num_heads * shape.head_dim
    kv_width = shape.num_kv_heads * shape.head_dim
    query_and_output = 2 * shape.hidden_size * attention_width
    key_and_value = 2 * shape.hidden_size * kv_width
    gate_up_down = 3 * shape.hidden_size * shape.intermediate_size
    weights = query_and_output + key_and_value + gate_up_down
    return 2.0 * weights * tokens + 4.0 * tokens**2 * attention_width


def _vision_flops(shape: ModelShape, tiles: int) -> float:
    if tiles == 0:
        return 0.0
    if shape.vision is None:
        raise BudgetError(
            f"{tiles} tiles are to be counted but the shape has no vision encoder; "
            f"give `vision` or 0 tiles"
        )
    width, tokens = shape.vision.hidden_size, shape.vision.tokens_per_tile
    weights = 4 * width**2 + 2 * width * shape.vision.intermediate_size
    per_layer = 2.0 * weights * tokens + 4.0 * tokens**2 * width
    return tiles * shape.vision.layers * per_layer
