"""What a self-check prunes by."""

from __future__ import annotations

from collections.abc import Sequence

from vflowopt_search.adapters.base import Adapter
from vflowopt_search.strategy import Importance, Stage, Strategy


def strategies_of(adapter: Adapter, keep: float) -> list[Strategy]:
    """One that starts before the decoder and goes on inside it, one that reads the decoder."""
    offered, middle = adapter.family.scores, middle_of(adapter)
    early = next((s for s in ("received_attention", "uniform", "random") if s in offered), None)
    late = "text_attention" if "text_attention" in offered else early
    found = []
    if early is not None:
        layers = (0, middle) if middle > 0 else (0,)
        found.append(strategy_of(adapter, f"before the decoder, {early}", early, layers, keep))
    if late is not None and middle > 0:
        found.append(strategy_of(adapter, f"inside the decoder, {late}", late, (1,), keep))
    return found


def strategy_of(
    adapter: Adapter, name: str, score: str, layers: Sequence[int], keep: float
) -> Strategy:
    """Keep the same share, by one score, at each of these layers."""
    reads = score == "received_attention" and bool(adapter.vision_layers)
    importance = Importance(score=score, vision_layer=adapter.vision_layers[-1] if reads else None)
    stages = tuple(Stage(layer=layer, keep_ratio=keep) for layer in sorted(set(layers)))
    return Strategy(name=name, importance=importance, stages=stages)


def middle_of(adapter: Adapter) -> int:
    """The decoder layer in the middle of the depth."""
    return len(adapter.decoder_layers) // 2
