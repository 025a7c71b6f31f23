"""A strategy in words, as `show` prints it and the report shows it."""

from __future__ import annotations

from vflowopt_search.strategy import Strategy

Facts = list[tuple[str, str]]
_UNITS = ("B", "kB", "MB", "GB", "TB")
FOUND = "found"
"""What the strategy is called that a search found, in every table, figure and sentence."""
METRICS = {
    "last_token_cosine": "1 - cosine of the last hidden state at the last prompt token",
    "flow": "1 - cosine of the hidden states at the last prompt token, mean over the layers",
    "kl": "Kullback-Leibler divergence of the next token",
    "total_variation": "total variation of the next token",
}
"""What each divergence is."""


def ranking(strategy: Strategy) -> Facts:
    """By what tokens are ranked, and what becomes of those that are dropped."""
    importance = strategy.importance
    parts = [importance.score]
    if importance.vision_layer is not None:
        parts.append(f"vision layer {importance.vision_layer}")
        parts.append(f"context threshold {importance.context_threshold:.3g}")
    if importance.entropy_weight:
        parts.append(f"entropy weight {importance.entropy_weight:.3g}")
    if importance.score == "random":
        parts.append(f"seed {importance.seed}")
    recycling = strategy.recycling
    return [
        ("importance", ", ".join(parts)),
        ("recycling", "none" if recycling is None else _cells(recycling.cell)),
        ("row separators", strategy.separators),
        ("positions", strategy.positions),
    ]


def stages(strategy: Strategy) -> list[tuple[str, str, str, str]]:
    """One row for each range of layers with the same visual tokens."""
    first, alive, rows = strategy.stages[0].layer, 1.0, []
    if first > 0:
        rows.append((_layers(0, first), "-", share(alive), "-"))
    depth = strategy.model.decoder_layers if strategy.model else None
    ends = [*(stage.layer for stage in strategy.stages[1:]), depth]
    for stage, end in zip(strategy.stages, ends, strict=True):
        alive *= stage.keep_ratio
        score = stage.score or strategy.importance.score
        layers, keep_ratio = _layers(stage.layer, end), f"{stage.keep_ratio:.3g}"
        rows.append((layers, keep_ratio, share(alive), score))
    return rows


def share(value: float) -> str:
    """A share of the tokens in per cent; two decimals where it is below one per cent."""
    return f"{value:.1%}" if value >= 0.01 else f"{value:.2%}"


def size(count: float) -> str:
    """So many bytes, in decimal units: 298 kB, 2.24 MB."""
    power = 0
    while count >= 1000 and power < len(_UNITS) - 1:
        count, power = count / 1000, power + 1
    return f"{three_digits(count)} {_UNITS[power]}"


def three_digits(value: float) -> str:
    """Three digits that count, and no exponent: 0.123, 4.56, 78.9, 1234."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def times(ratio: float) -> str:
    """How many times as much: 4.2 x; two decimals where it is nearly as much, 1.04 x."""
    return f"{ratio:.2f} x" if ratio < 1.1 else f"{ratio:.1f} x"


def _cells(side: float) -> str:
    return f"grid cells of {side:.3g} x {side:.3g} tokens"


def _layers(first: int, end: int | None) -> str:
    if end is None:
        return f"{first} and later"
    return str(first) if end == first + 1 else f"{first} to {end - 1}"
