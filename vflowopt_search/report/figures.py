"""Records of a study as plotly figures; they hold no number that is not in the record."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor, log10

import plotly.graph_objects as go

from vflowopt_search.report.frames import (
    Comparison,
    History,
    ParameterImportance,
    SampleHeatmap,
    Staircase,
)

BLUE, ORANGE, GREY = "#3b82f6", "#f97316", "#8b95a5"
"""Colours that can be read on white and on black."""
OTHERS = ("#14b8a6", "#a855f7", "#eab308", "#ec4899", "#84cc16", "#64748b")
_ROW_PIXELS = 26
_ROOM_FOR_TEXT = 1.3
_FAR_APART = 5
"""From this ratio on, a logarithmic axis: the worst trials would press the best to the ground."""


def history_figure(record: History) -> go.Figure:
    """Each trial's divergence, by how it ended, and the best so far as a step line."""
    figure = empty_figure("trial", "divergence")
    for outcome, name, symbol, colour in (
        ("complete", "fully measured", "circle", BLUE),
        ("stopped", "stopped early", "circle-open", GREY),
    ):
        rows = [row for row, ended in enumerate(record.outcome) if ended == outcome]
        figure.add_scatter(
            x=[record.trial[row] for row in rows],
            y=[record.value[row] for row in rows],
            text=[record.label[row] or "searched" for row in rows],
            mode="markers",
            name=name,
            marker={"symbol": symbol, "color": colour, "size": 7},
            hovertemplate="trial %{x}: %{y:.5f}<br>%{text}<extra></extra>",
        )
    figure.add_scatter(
        x=record.trial,
        y=record.best,
        mode="lines",
        name="best so far",
        line={"shape": "hv", "color": ORANGE, "width": 2.5},
        hovertemplate="best so far: %{y:.5f}<extra></extra>",
    )
    for (name, value), colour in zip(record.baselines.items(), OTHERS, strict=False):
        figure.add_scatter(
            x=[record.trial[0], record.trial[-1]],
            y=[value, value],
            mode="lines",
            name=name,
            line={"color": colour, "width": 1.5, "dash": "dash"},
            hovertemplate=f"{name}: %{{y:.5f}}<extra></extra>",
        )
    logarithmic_where_far_apart(figure, [*record.value, *record.baselines.values()])
    return figure


def staircase_figure(record: Staircase) -> go.Figure:
    """The share of visual tokens alive from layer to layer."""
    figure = empty_figure("decoder layer", "visual tokens alive")
    colours = {"best": ORANGE, **dict(zip(_without_best(record), _cycle(), strict=False))}
    for name, alive in reversed(record.alive.items()):  # the best is drawn last, on top
        is_best = name == "best"
        figure.add_scatter(
            # One more point, so that the last layer is as wide as the others.
            x=[*record.layer, len(record.layer)],
            y=[*alive, alive[-1]],
            mode="lines",
            name=name,
            line={
                "shape": "hv",
                "color": colours[name],
                "width": 3.5 if is_best else 2,
                "dash": "solid" if is_best else "dot",
            },
            hovertemplate=f"{name}, layer %{{x}}: %{{y:.1%}}<extra></extra>",
        )
    figure.update_yaxes(tickformat=".0%", rangemode="tozero")
    figure.update_xaxes(dtick=max(1, len(record.layer) // 10))
    return figure


def comparison_figure(record: Comparison) -> go.Figure:
    """The best strategy beside plain ones; shorter is better."""
    figure = empty_figure("divergence", "", rows=len(record.name))
    figure.add_bar(
        x=record.divergence,
        y=record.name,
        orientation="h",
        marker={"color": [ORANGE if name == "best" else GREY for name in record.name]},
        text=[f"{value:.3g}" for value in record.divergence],
        textposition="outside",
        hovertemplate="%{y}: %{x:.5f}<extra></extra>",
    )
    figure.update_yaxes(autorange="reversed", type="category")
    figure.update_xaxes(range=[0, _ROOM_FOR_TEXT * max(record.divergence, default=1)])
    return figure


def importance_figure(record: ParameterImportance) -> go.Figure:
    """How much each parameter decides whether a trial is among the best."""
    figure = empty_figure("importance", "", rows=len(record.parameter))
    figure.add_bar(
        x=record.importance,
        y=record.parameter,
        orientation="h",
        marker={"color": BLUE},
        text=[f"{share:.0%}" for share in record.importance],
        textposition="outside",
        hovertemplate="%{y}: %{x:.1%}<extra></extra>",
    )
    figure.update_yaxes(autorange="reversed", type="category")
    longest = max(record.importance, default=1)
    figure.update_xaxes(tickformat=".0%", range=[0, _ROOM_FOR_TEXT * longest])
    return figure


def heatmap_figure(record: SampleHeatmap) -> go.Figure:
    """Which samples are hard, and whether the best trials find the same ones hard."""
    figure = empty_figure(
        "calibration sample, hardest first", "trial, best first", len(record.trial)
    )
    figure.add_heatmap(
        z=record.value,
        x=[str(sample) for sample in record.sample],
        y=[str(trial) for trial in record.trial],
        colorscale="Viridis",
        colorbar={"title": {"text": "divergence", "side": "right"}, "thickness": 12},
        hovertemplate="trial %{y}, sample %{x}: %{z:.5f}<extra></extra>",
    )
    figure.update_xaxes(type="category", nticks=12)
    figure.update_yaxes(autorange="reversed", type="category", nticks=len(record.trial))
    return figure


def empty_figure(x: str, y: str, rows: int | None = None) -> go.Figure:
    """An empty figure; `rows` gives the height of one that has a row for each thing."""
    figure = go.Figure()
    figure.update_layout(
        template="plotly_white",
        height=380 if rows is None else 110 + _ROW_PIXELS * max(rows, 3),
        margin={"l": 12, "r": 12, "t": 12, "b": 12},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        font={"family": "system-ui, sans-serif", "size": 13},
    )
    figure.update_xaxes(title={"text": x}, automargin=True, zeroline=False)
    figure.update_yaxes(title={"text": y}, automargin=True)
    return figure


def logarithmic_where_far_apart(figure: go.Figure, values: Sequence[float]) -> None:
    """A logarithmic y axis, with round numbers, where values lie far apart."""
    if values and max(values) > _FAR_APART * min(values) > 0:
        ticks = _round_numbers(min(values), max(values))
        figure.update_yaxes(type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])


def _round_numbers(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten from `low` to `high`."""
    powers = range(floor(log10(low)), floor(log10(high)) + 1)
    # Not 10.0**power, which is 0.010000000000000002 for some.
    candidates = [float(f"{digit}e{power}") for power in powers for digit in (1, 2, 5)]
    return [number for number in candidates if low <= number <= high]


def _without_best(record: Staircase) -> list[str]:
    return [name for name in record.alive if name != "best"]


def _cycle() -> list[str]:
    return list(OTHERS) * 4
