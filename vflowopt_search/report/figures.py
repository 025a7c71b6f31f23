"""Records of a study as plotly figures; they hold no number that is not in the record.

Each says in words, as `layout.meta["alt"]`, what is to be seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import floor, log10, sqrt
from typing import Any

import plotly.graph_objects as go

from vflowopt_search.report.frames import (
    Comparison,
    History,
    ParameterImportance,
    SampleHeatmap,
    Staircase,
)
from vflowopt_search.report.palette import (
    BLUE,
    DASHES,
    GREY,
    ORANGE,
    OTHERS,
    coinciding,
    described,
    in_lines,
    line_style,
)
from vflowopt_search.report.words import FOUND

_ROW_PIXELS = 26
_ROOM_FOR_TEXT = 1.3
_FAR_APART = 5
"""From this ratio on, a logarithmic axis: the worst trials would press the others to the ground."""
_MOST_SAMPLE_LABELS = 24
_BAR_ABOVE = {
    "title": {"text": "divergence", "side": "top"},
    "orientation": "h",
    "thickness": 10,
    "len": 0.5,
    "lenmode": "fraction",
    "x": 0,
    "xanchor": "left",
    "y": 1.0,
    "yanchor": "bottom",
    "ypad": 4,
}
"""The colours of a heatmap, above it on the left."""
_TICK_SPACING = 0.2
"""Of the colour bar, what is left free between two of its numbers."""


def history_figure(record: History) -> go.Figure:
    """Each trial's divergence, by how it ended, and the lowest so far as a step line."""
    figure = empty_figure("trial", "mean divergence")
    _trials_by_outcome(figure, record)
    figure.add_scatter(
        x=record.trial,
        y=record.best,
        mode="lines",
        name="lowest so far",
        line={"shape": "hv", "color": ORANGE, "width": 2.5},
        hovertemplate="lowest so far: %{y:.5f}<extra></extra>",
    )
    for place, (name, value) in enumerate(record.baselines.items()):
        figure.add_scatter(
            x=[record.trial[0], record.trial[-1]],
            y=[value, value],
            mode="lines",
            name=in_lines(name),
            line={
                "color": OTHERS[place % len(OTHERS)],
                "width": 1.8,
                "dash": DASHES[1 + place % (len(DASHES) - 1)],
            },
            hovertemplate=f"{name}: %{{y:.5f}}<extra></extra>",
        )
    logarithmic_where_far_apart(figure, [*record.value, *record.baselines.values()])
    described(figure, [f"{len(record.trial)} trials", *_lowest(record.best), *_plain(record)])
    return figure


def _trials_by_outcome(figure: go.Figure, record: History) -> None:
    for outcome, name, symbol, colour in (
        ("stopped", "stopped early", "circle-open", GREY),
        ("complete", "measured on all samples", "circle", BLUE),
    ):
        rows = [row for row, ended in enumerate(record.outcome) if ended == outcome]
        figure.add_scatter(
            x=[record.trial[row] for row in rows],
            y=[record.value[row] for row in rows],
            text=[record.label[row] or "searched" for row in rows],
            mode="markers",
            name=name,
            marker={"symbol": symbol, "color": colour, "size": 7},
            hovertemplate=f"trial %{{x}}, {name}: %{{y:.5f}}<br>%{{text}}<extra></extra>",
        )


def _lowest(best: Sequence[float]) -> list[str]:
    return [f"lowered the divergence to {best[-1]:.4g}."] if best else []


def _plain(record: History) -> list[str]:
    named = [f"{name} {value:.4g}" for name, value in record.baselines.items()]
    return [f"Baselines: {', '.join(named)}."] if named else []


def staircase_figure(record: Staircase) -> go.Figure:
    """The share of visual tokens kept from layer to layer; equal lines are one with two names."""
    figure = empty_figure("decoder layer", "visual tokens kept")
    for place, (name, alive) in enumerate(coinciding(record.alive).items()):
        figure.add_scatter(
            # One more point, so that the last layer is as wide as the others.
            x=[*record.layer, len(record.layer)],
            y=[*alive, alive[-1]],
            mode="lines",
            name=in_lines(name),
            line={"shape": "hv", **line_style(place)},
            cliponaxis=False,  # a line at nothing lies on the axis
            hovertemplate=f"{name}, from layer %{{x}}: %{{y:.1%}}<extra></extra>",
        )
    figure.update_yaxes(tickformat=".0%", rangemode="tozero")
    figure.update_xaxes(dtick=max(1, len(record.layer) // 10))
    described(figure, [_steps(name, alive) for name, alive in coinciding(record.alive).items()])
    return figure


def _steps(name: str, alive: Sequence[float]) -> str:
    """Where a staircase goes down."""
    steps = [f"{alive[0]:.1%} from layer 0"]
    for layer in range(1, len(alive)):
        if alive[layer] != alive[layer - 1]:
            steps.append(f"{alive[layer]:.1%} from layer {layer}")
    return f"{name}: {', '.join(steps)}."


def comparison_figure(record: Comparison) -> go.Figure:
    """The strategy found beside the baselines; shorter is better."""
    colours = [ORANGE if name == FOUND else GREY for name in record.name]
    figure = _bars("mean divergence (lower is better)", record.name, record.divergence, colours)
    figure.update_traces(text=[f"{value:.3g}" for value in record.divergence])
    figure.update_traces(hovertemplate="%{customdata}: %{x:.5f}<extra></extra>")
    pairs = zip(record.name, record.divergence, strict=True)
    described(figure, ["Divergence:", ", ".join(f"{name} {value:.4g}" for name, value in pairs)])
    return figure


def importance_figure(record: ParameterImportance) -> go.Figure:
    """How much each parameter decides whether a trial is among those of lowest divergence."""
    colours = [BLUE] * len(record.parameter)
    figure = _bars("importance", record.parameter, record.importance, colours)
    texts = ["<1%" if 0 < share < 0.005 else f"{share:.0%}" for share in record.importance]
    figure.update_traces(text=texts, hovertemplate="%{customdata}: %{x:.1%}<extra></extra>")
    figure.update_xaxes(tickformat=".0%")
    pairs = zip(record.parameter, texts, strict=True)
    described(figure, ["Importance:", ", ".join(f"{name} {text}" for name, text in pairs)])
    return figure


def _bars(x: str, names: Sequence[str], values: Sequence[float], colours: list[str]) -> go.Figure:
    """A bar for each name, the first on top, with room for its number."""
    figure = empty_figure(x, "", rows=len(names))
    figure.add_bar(
        x=list(values),
        y=list(range(len(names))),  # not the names: two that look alike would be one bar
        customdata=list(names),
        orientation="h",
        marker={"color": colours},
        textposition="outside",
        cliponaxis=False,
    )
    figure.update_yaxes(
        tickvals=list(range(len(names))),
        ticktext=[in_lines(name, 22) for name in names],
        range=[len(names) - 0.5, -0.5],
        showgrid=False,
        zeroline=False,
    )
    figure.update_xaxes(range=[0, _ROOM_FOR_TEXT * max(values, default=1)], nticks=6)
    figure.update_layout(margin={"r": 26})  # the last number of the axis reaches over its end
    return figure


def heatmap_figure(record: SampleHeatmap) -> go.Figure:
    """Which samples are hard, and whether the leading trials find the same ones hard.

    Colours go by the square root, or few hard samples would leave all others one colour.
    """
    samples, trials = len(record.sample), len(record.trial)
    figure = empty_figure("calibration sample, hardest on the left", "trial", trials + 1)
    figure.add_heatmap(
        **_root_scale(record),
        z=[[sqrt(max(value, 0.0)) for value in row] for row in record.value],
        x=list(range(samples)),
        y=list(range(trials)),
        text=[[f"{value:.5f}" for value in row] for row in record.value],
        customdata=[[[trial, sample] for sample in record.sample] for trial in record.trial],
        colorscale="Viridis",
        hovertemplate="trial %{customdata[0]}, sample %{customdata[1]}: %{text}<extra></extra>",
    )
    step = -(-samples // _MOST_SAMPLE_LABELS)
    places = list(range(0, samples, max(step, 1)))
    figure.update_xaxes(
        tickvals=places,
        ticktext=[str(record.sample[place]) for place in places],
        tickangle=0,
        showgrid=False,
        range=[-0.5, samples - 0.5],
    )
    figure.update_yaxes(
        tickvals=list(range(trials)),
        ticktext=[str(trial) for trial in record.trial],
        range=[trials - 0.5, -0.5],
        showgrid=False,
        zeroline=False,
    )
    described(figure, [f"{trials} trials on {samples} samples.", *_hardest(record)])
    return figure


def _root_scale(record: SampleHeatmap) -> dict[str, Any]:
    """Colours from 0 on; round divergences where their square roots lie, with room between."""
    highest = max((value for row in record.value for value in row), default=0.0)
    if highest <= 0:
        return {"colorbar": _BAR_ABOVE}
    ticks: list[float] = []
    for value in [*reversed(round_numbers(highest / 1000, highest)), 0.0]:
        if not ticks or sqrt(ticks[-1]) - sqrt(value) >= _TICK_SPACING * sqrt(highest):
            ticks.append(value)
    labels = {"tickvals": [sqrt(tick) for tick in ticks], "ticktext": [f"{t:g}" for t in ticks]}
    return {"zmin": 0, "zmax": sqrt(highest), "colorbar": _BAR_ABOVE | labels}


def _hardest(record: SampleHeatmap) -> list[str]:
    first = ", ".join(map(str, record.sample[:5]))
    return [f"The hardest are, from the hardest on: {first}."] if first else []


def empty_figure(x: str, y: str, rows: int | None = None) -> go.Figure:
    """An empty figure; `rows` gives the height of one that has a row for each thing."""
    figure = go.Figure()
    figure.update_layout(
        template="plotly_white",
        height=380 if rows is None else 110 + _ROW_PIXELS * max(rows, 3),
        margin={"l": 12, "r": 16, "t": 12, "b": 12},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        font={"family": "system-ui, sans-serif", "size": 13},
    )
    figure.update_xaxes(title={"text": x}, automargin=True, zeroline=False)
    figure.update_yaxes(title={"text": y}, automargin=True)
    return figure


def logarithmic_where_far_apart(figure: go.Figure, values: Sequence[float]) -> None:
    """A logarithmic y axis, with round numbers, where values lie far apart."""
    if values and max(values) > _FAR_APART * min(values) > 0:
        figure.update_yaxes(**logarithmic(min(values), max(values)))


def logarithmic(low: float, high: float) -> dict[str, Any]:
    """A logarithmic axis that says round numbers."""
    ticks = round_numbers(low, high)
    return {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}


def round_numbers(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten from `low` to `high`."""
    powers = range(floor(log10(low)), floor(log10(high)) + 1)
    # Not 10.0**power, which is 0.010000000000000002 for some.
    candidates = [float(f"{digit}e{power}") for power in powers for digit in (1, 2, 5)]
    return [number for number in candidates if low <= number <= high]
