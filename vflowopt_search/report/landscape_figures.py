"""Slices, parallel coordinates and budget curves as plotly figures of their records."""

from __future__ import annotations

from collections.abc import Sequence
from math import log10
from typing import Any

import plotly.graph_objects as go

from vflowopt_search.report.figures import (
    empty_figure,
    logarithmic,
    logarithmic_where_far_apart,
)
from vflowopt_search.report.landscape import (
    GROUPS,
    ParallelCoordinates,
    Slice,
)
from vflowopt_search.report.palette import BLUE, GREY, ORANGE, described, in_lines, line_style
from vflowopt_search.report.several import BudgetCurve, Progress
from vflowopt_search.report.words import FOUND

_SLICE_PIXELS = 240
_AXIS_PIXELS = 46
_LABEL_LETTERS, _LETTER_PIXELS = 14, 7
"""How many letters a value may have, and the width of one."""
_MOST_BUDGET_TICKS = 6
_ROOM = 1.15
_MARGIN = 0.06
"""Of an axis, what is left free beyond its first and last value."""
_GROUP_STYLE = {
    GROUPS[0]: {"color": ORANGE, "width": 1.8},
    GROUPS[1]: {"color": BLUE, "width": 1.0},
    GROUPS[2]: {"color": GREY, "width": 0.8},
}
_OPACITY = {GROUPS[0]: 0.95, GROUPS[1]: 0.55, GROUPS[2]: 0.5}


def slice_figures(records: Sequence[Slice]) -> list[go.Figure]:
    """A small figure for each parameter, all on one scale, so that they can be compared."""
    everything = [value for record in records for value in record.divergence]
    found = [slice_figure(record, everything) for record in records]
    for figure in found:
        figure.update_layout(height=_SLICE_PIXELS, showlegend=False)
        figure.update_yaxes(title=None, nticks=5)
    return found


def slice_figure(record: Slice, scale: Sequence[float] = ()) -> go.Figure:
    """Divergence of each trial against one parameter; the one found is marked.

    Args:
        record: what is drawn.
        scale: divergences that the axis has room for, besides those of the record.
    """
    figure = empty_figure(in_lines(record.parameter), "mean divergence")
    for full, name, symbol, colour in (
        (False, "stopped early", "circle-open", GREY),
        (True, "measured on all samples", "circle", BLUE),
    ):
        rows = [row for row, measured in enumerate(record.full) if measured is full]
        _points(figure, record, rows, name, {"symbol": symbol, "color": colour, "size": 6})
    if record.best is not None:
        marker = {"symbol": "diamond", "color": ORANGE, "size": 11}
        _points(figure, record, [record.best], FOUND, marker)
    _share_scale(figure, [*record.divergence, *scale])
    _parameter_axis(figure, record)
    described(figure, [f"Divergence of {len(record.value)} trials against {record.parameter}."])
    return figure


def _points(
    figure: go.Figure, record: Slice, rows: Sequence[int], name: str, marker: dict[str, Any]
) -> None:
    figure.add_scatter(
        x=[record.value[row] for row in rows],
        y=[record.divergence[row] for row in rows],
        text=[f"trial {record.trial[row]}, {name}" for row in rows],
        mode="markers",
        name=name,
        marker=marker,
        hovertemplate="%{text}<br>%{x}: %{y:.5f}<extra></extra>",
    )


def _share_scale(figure: go.Figure, values: Sequence[float]) -> None:
    """The same y axis for all figures that are given the same values."""
    if not values:
        return
    logarithmic_where_far_apart(figure, values)
    ends = (min(values), max(values))
    if figure.layout.yaxis.type == "log":
        ends = (log10(ends[0]), log10(ends[1]))
    margin = _MARGIN * (ends[1] - ends[0] or abs(ends[0]) or 1)
    figure.update_yaxes(range=[ends[0] - margin, ends[1] + margin])


def _parameter_axis(figure: go.Figure, record: Slice) -> None:
    """Choices in their order, whole numbers at whole numbers, round numbers on a log axis."""
    if record.choices:
        figure.update_xaxes(type="category", categoryorder="array", categoryarray=record.choices)
        figure.update_xaxes(range=[-0.5, len(record.choices) - 0.5])
        return
    values = [float(value) for value in record.value]
    if record.log:
        figure.update_xaxes(**logarithmic(min(values) * (1 - _MARGIN), max(values) * (1 + _MARGIN)))
    elif all(value.is_integer() for value in values):
        figure.update_xaxes(tickformat="d", dtick=max(1, round((max(values) - min(values)) / 5)))
    else:
        figure.update_xaxes(nticks=6)


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
    _label_axes(figure, record)
    names = [axis.parameter for axis in record.axes]
    figure.update_layout(height=90 + _AXIS_PIXELS * max(height, 2), legend_traceorder="reversed")
    figure.update_xaxes(range=[-0.01, 1.01], showticklabels=False, showgrid=False)
    figure.update_yaxes(range=[height - 0.6, -0.75])
    described(figure, [f"{len(record.trial)} trials over {height} parameters: {', '.join(names)}."])
    return figure


def _label_axes(figure: go.Figure, record: ParallelCoordinates) -> None:
    """Names and values outside of the lines: the lowest below its name, the highest on the right.

    A value between the two stands above its place, on a background of its own.
    """
    names, letters = [], 0
    for number, axis in enumerate(record.axes):
        texts = {
            p: in_lines(t, _LABEL_LETTERS) for p, t in zip(axis.place, axis.label, strict=True)
        }
        lowest = f"<br><span style='color:{GREY}'>{texts.pop(0.0)}</span>" if 0 in texts else ""
        names.append(in_lines(axis.parameter, 22) + lowest)
        for place, text in texts.items():
            end = {"xanchor": "left", "xshift": 5, "yshift": 0, "yanchor": "middle"}
            above = {"xanchor": "center", "yshift": 3, "yanchor": "bottom"}
            figure.add_annotation(
                x=place,
                y=number,
                **(end if place == 1 else above),
                text=text,
                showarrow=False,
                bgcolor="rgba(255, 255, 255, 0.85)",  # the page has a colour of its own
                borderpad=1,
                font={"size": 11},
            )
        letters = max(letters, *map(len, texts.get(1.0, "").split("<br>")))
    figure.update_yaxes(tickvals=list(range(len(names))), ticktext=names)
    figure.update_layout(margin={"r": 16 + _LETTER_PIXELS * letters})


def budget_figure(record: BudgetCurve) -> go.Figure:
    """A point for each run, a line through the medians of each series."""
    figure = empty_figure("visual tokens kept, mean over layers", "mean divergence")
    told = []
    for place, (series, budgets) in enumerate(record.retain.items()):
        style = line_style(place)
        figure.add_scatter(
            x=budgets,
            y=record.divergence[series],
            text=record.run[series],
            mode="markers",
            name=series,
            legendgroup=series,
            showlegend=False,
            marker={"color": style["color"], "size": 6 + style["width"]},
            hovertemplate="%{text}, " + series + "<br>%{x:.1%}: %{y:.5f}<extra></extra>",
        )
        across, middle = record.medians(series)
        figure.add_scatter(
            x=across,
            y=middle,
            mode="lines+markers",
            name=in_lines(series),
            legendgroup=series,
            hoverinfo="skip",
            line=style,
            marker={"color": style["color"], "size": 1},
        )
        pairs = zip(across, middle, strict=True)
        told.append(f"{series}: {', '.join(f'{y:.4g} at {x:.1%}' for x, y in pairs)}.")
    budgets = [budget for series in record.retain.values() for budget in series]
    figure.update_xaxes(tickformat=".0%", range=[0, _ROOM * max(budgets)])
    if len(set(budgets)) <= _MOST_BUDGET_TICKS:
        figure.update_xaxes(tickvals=sorted(set(budgets)), tickformat=".3~p")
    logarithmic_where_far_apart(figure, [y for ys in record.divergence.values() for y in ys])
    described(figure, told)
    return figure


def progress_figure(record: Progress) -> go.Figure:
    """The lowest divergence so far of each run as a step line."""
    figure = empty_figure("trial", "lowest divergence so far")
    for place, (name, trial) in enumerate(record.trial.items()):
        figure.add_scatter(
            x=trial,
            y=record.best[name],
            mode="lines",
            name=in_lines(name),
            line={"shape": "hv", **line_style(place)},
            hovertemplate=name + ", trial %{x}: %{y:.5f}<extra></extra>",
        )
    logarithmic_where_far_apart(figure, [value for best in record.best.values() for value in best])
    ends = [f"{name}: {best[-1]:.4g} after {len(best)}." for name, best in record.best.items()]
    described(figure, ends)
    return figure
