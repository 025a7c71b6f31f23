"""Figures hold the numbers of their records, and no others."""

from __future__ import annotations

from typing import Any

import pytest

from vflowopt_search.report import figures
from vflowopt_search.report.frames import (
    Comparison,
    History,
    ParameterImportance,
    SampleHeatmap,
    Staircase,
)


def traces(figure: Any) -> dict[str, Any]:
    return {trace.name: trace for trace in figure.data}


def test_history_shows_each_trial_once_by_how_it_ended() -> None:
    record = History([0, 1, 3], [1.0, 4.0, 0.1], [1.0, 1.0, 0.1], *how("complete stopped complete"))
    drawn = traces(figures.history_figure(record))
    assert drawn["fully measured"].x == (0, 3) and drawn["fully measured"].y == (1.0, 0.1)
    assert drawn["stopped early"].x == (1,) and drawn["stopped early"].y == (4.0,)
    assert drawn["best so far"].y == (1.0, 1.0, 0.1)


def test_history_draws_each_baseline_from_end_to_end() -> None:
    plain = {"random": 3.0, "uniform": 2.0}
    record = History([0, 3], [1.0, 0.5], [1.0, 0.5], *how("complete complete"), plain)
    drawn = traces(figures.history_figure(record))
    for name, value in plain.items():
        assert drawn[name].x == (0, 3) and drawn[name].y == (value, value)


def how(outcomes: str) -> tuple[list[Any], list[str]]:
    return outcomes.split(), [""] * len(outcomes.split())


@pytest.mark.parametrize(
    ("values", "scale"), [([0.01, 0.2], "log"), ([0.1, 0.2], None), ([0.0, 1.0], None)]
)
def test_history_is_logarithmic_only_where_values_are_far_apart(
    values: list[float], scale: str | None
) -> None:
    record = History([0, 1], values, values, *how("complete complete"))
    axis = figures.history_figure(record).layout.yaxis
    assert axis.type == scale
    assert scale is None or axis.tickvals == (0.01, 0.02, 0.05, 0.1, 0.2)


def test_staircase_draws_the_best_last_and_the_last_layer_whole() -> None:
    record = Staircase([0, 1], {"best": [0.5, 0.25], "pyramid": [0.4, 0.35]})
    figure = figures.staircase_figure(record)
    assert [trace.name for trace in figure.data] == ["pyramid", "best"]
    assert figure.data[1].x == (0, 1, 2) and figure.data[1].y == (0.5, 0.25, 0.25)


def test_comparison_marks_the_best() -> None:
    bars = figures.comparison_figure(Comparison(["best", "random"], [0.1, 0.4])).data[0]
    assert bars.x == (0.1, 0.4) and bars.y == ("best", "random")
    assert bars.marker.color == (figures.ORANGE, figures.GREY)


def test_importance_and_heatmap_draw_their_record() -> None:
    importance = figures.importance_figure(ParameterImportance(["a", "b"], [0.9, 0.1])).data[0]
    assert importance.x == (0.9, 0.1) and importance.y == ("a", "b")
    heat = figures.heatmap_figure(SampleHeatmap([7, 2], [1, 0], [[3.0, 2.0], [9.0, 8.0]])).data[0]
    assert [list(row) for row in heat.z] == [[3.0, 2.0], [9.0, 8.0]]
    assert heat.y == ("7", "2") and heat.x == ("1", "0")
