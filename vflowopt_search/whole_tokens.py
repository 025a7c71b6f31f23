"""What is said where whole tokens, at least one in each layer, cannot keep as few as were asked."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from vflowopt_search.budget import alive_ratios, tokens_per_layer
from vflowopt_search.strategy import Strategy

NOTICED = 0.1
"""Relative; a share that is kept is told where it differs from the one asked for by more."""


def overshoot(retain: float, strategy: Strategy | None, counts: Sequence[int]) -> str:
    """The sentence; empty where about as many visual tokens are kept as were asked for.

    Args:
        retain: share of the visual tokens that was asked for, mean over the decoder layers.
        strategy: what is kept; None, or one for any model, keeps nothing that is known.
        counts: visual tokens of samples: of all, or the fewest and the most.
    """
    seen = sorted({count for count in counts if count})
    if strategy is None or strategy.model is None or not seen:
        return ""
    stages, depth = strategy.stages, strategy.model.decoder_layers
    kept = [sum(tokens_per_layer(stages, count, depth)) / (count * depth) for count in seen]
    if abs(fmean(kept) / retain - 1) <= NOTICED and retain * seen[0] >= 1:
        return ""
    told = " to ".join(dict.fromkeys(f"{share:.2%}" for share in (min(kept), max(kept))))
    are = "are" if " to " in told else "is"
    if seen[0] * min(alive_ratios(stages, depth)) < 1:
        return (
            f"At {100 * retain:.3g}% of the visual tokens fewer than one token would be left in a "
            f"layer; one always stays: {told} {are} kept."
        )
    return f"In whole tokens {told} of the visual tokens {are} kept, not {100 * retain:.3g}%."
