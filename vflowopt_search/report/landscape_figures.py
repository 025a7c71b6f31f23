"""Slices, parallel coordinates and budget curves as plotly figures of their records."""

from __future__ import annotations

import plotly.graph_objects as go

from vflowopt_search.report.figures import (
    BLUE,
    GREY,
    ORANGE,
    OTHERS,
    empty_figure,
    logarithmic_where_far_apart,
)
from vflowopt_search.report.landscape import (
    GROUPS,
    ParallelCoordinates,
    Slice,
)
from vflowopt_search.report.several import BudgetCurve, Progress

_SLICE_PIXELS = 240
_AXIS_PIXELS = 46
_ROOM = 1.15
_GROUP_STYLE = {
    GROUPS[0]: {"color": ORANGE, "width": 1.6},
    GROUPS[1]: {"color": BLUE, "width": 0.9},
    GROUPS[2]: {"color": GREY, "width": 0.7},
}
_OPACITY = {GROUPS[0]: 0.95, GROUPS[1]: 0.45, GROUPS[2]: 0.45}


def slice_figure(record: Slice) -> go.Figure:
    """Divergence of each trial against one parameter; the best trial is marked."""
    figure = empty_figure(record.parameter, "divergence")
    for full, name, symbol, colour in (
        (False, "stopped early", "circle-open", GREY),
        (True, "fully measured", "circle", BLUE),
    ):
        rows = [row for row, measured in enumerate(record.full) if measured is full]
        figure.add_scatter(
            x=[record.value[row] for row in rows],
            y=[record.divergence[row] for row in rows],
            mode="markers",
            name=name,
            marker={"symbol": symbol, "color": colour, "size": 5, "opacity": 0.7},
            hovertemplate="%{x}: %{y:.5f}<extra></extra>",
        )
    if record.best is not None:
        figure.add_scatter(
            x=[record.value[record.best]],
            y=[record.divergence[record.best]],
            mode="markers",
            name="best",
            marker={"symbol": "diamond", "color": ORANGE, "size": 11},
            hovertemplate="best, %{x}: %{y:.5f}<extra></extra>",
        )
    figure.update_layout(height=_SLICE_PIXELS, showlegend=False)
    figure.update_yaxes(title=None, nticks=5)
    logarithmic_where_far_apart(figure, record.divergence)
    if record.choices:
        figure.update_xaxes(type="category", categoryorder="array", categoryarray=record.choices)
    elif record.log:
        figure.update_xaxes(type="log", nticks=5)
    elif all(float(value).is_integer() for value in record.value):
        figure.update_xaxes(tickformat="d", nticks=5)
    return figure


def parallel_figure(record: ParallelCoordinates) -> go.Figure:
    """One row per parameter, one line per trial; groups are switched by the legend."""
    figure = empty_figure("", "")
    height = len(record.axes)
    for group in reversed(GROUPS):  # the best are drawn last, on top
        rows = [row for row, its in enumerate(record.group) if its == group]
        across, down, told = [], [], []
        for row in reversed(rows):
            label = f"trial {record.trial[row]}: {record.divergence[row]:.5f}"
            across += [*record.place[row], None]
            down += [*range(height), None]
            told += [label] * (height + 1)
        figure.add_scatter(
            x=across,
            y=down,
            text=told,
            mode="lines",
            name=group,
            opacity=_OPACITY[group],
            line={**_GROUP_STYLE[group], "shape": "linear"},
            hovertemplate="%{text}<extra></extra>",
            connectgaps=False,
        )
    figure.add_scatter(
        x=[place for axis in record.axes for place in axis.place],
        y=[number - 0.16 for number, axis in enumerate(record.axes) for _ in axis.place],
        text=[label for axis in record.axes for label in axis.label],
        mode="text",
        textposition=[
            "top right" if place == 0 else "top left" if place == 1 else "top center"
            for axis in record.axes
            for place in axis.place
        ],
        textfont={"size": 11},
        showlegend=False,
        hoverinfo="skip",
    )
    names = [axis.parameter for axis in record.axes]
    figure.update_layout(height=90 + _AXIS_PIXELS * max(height, 2))
    figure.update_xaxes(range=[-0.02, 1.02], showticklabels=False, showgrid=False)
    figure.update_yaxes(tickvals=list(range(height)), ticktext=names, range=[height - 0.6, -0.75])
    return figure


def budget_figure(record: BudgetCurve) -> go.Figure:
    """A point for each run, a line through the medians of each series."""
    figure = empty_figure("visual tokens kept, mean over layers", "divergence")
    others = [name for name in record.retain if not name.startswith("best")]
    colours = {"best": ORANGE, "best, held out": BLUE, **dict(zip(others, OTHERS, strict=False))}
    for series, budgets in record.retain.items():
        colour = colours.get(series, GREY)
        figure.add_scatter(
            x=budgets,
            y=record.divergence[series],
            text=record.run[series],
            mode="markers",
            name=series,
            legendgroup=series,
            marker={"color": colour, "size": 9 if series == "best" else 6},
            hovertemplate="%{text}, " + series + "<br>%{x:.1%}: %{y:.5f}<extra></extra>",
        )
        across, middle = record.medians(series)
        figure.add_scatter(
            x=across,
            y=middle,
            mode="lines",
            name=series,
            legendgroup=series,
            showlegend=False,
            hoverinfo="skip",
            line={"color": colour, "width": 3 if series == "best" else 1.5},
        )
    most = max(budget for budgets in record.retain.values() for budget in budgets)
    figure.update_xaxes(tickformat=".0%", range=[0, _ROOM * most])
    logarithmic_where_far_apart(figure, [y for ys in record.divergence.values() for y in ys])
    return figure


def progress_figure(record: Progress) -> go.Figure:
    """The best so far of each run as a step line."""
    figure = empty_figure("trial", "best divergence so far")
    for (name, trial), colour in zip(record.trial.items(), (ORANGE, BLUE, *OTHERS), strict=False):
        figure.add_scatter(
            x=trial,
            y=record.best[name],
            mode="lines",
            name=name,
            line={"shape": "hv", "color": colour, "width": 2},
            hovertemplate=name + ", trial %{x}: %{y:.5f}<extra></extra>",
        )
    logarithmic_where_far_apart(figure, [value for best in record.best.values() for value in best])
    return figure
