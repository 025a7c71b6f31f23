"""Figures hold the numbers of their records, and no others."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vflowopt_search.report import figures, palette
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
    assert drawn["measured on all samples"].x == (0, 3) and drawn["measured on all samples"].y == (
        1.0,
        0.1,
    )
    assert drawn["stopped early"].x == (1,) and drawn["stopped early"].y == (4.0,)
    assert drawn["lowest so far"].y == (1.0, 1.0, 0.1)


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


def test_staircase_draws_the_last_layer_whole_and_narrow_lines_over_wide_ones() -> None:
    record = Staircase([0, 1], {"found": [0.5, 0.25], "pyramid": [0.4, 0.35]})
    found, pyramid = figures.staircase_figure(record).data
    assert (found.name, pyramid.name) == ("found", "pyramid")
    assert found.x == (0, 1, 2) and found.y == (0.5, 0.25, 0.25)
    assert found.line.width > pyramid.line.width and found.line.dash != pyramid.line.dash


def test_staircases_that_coincide_are_one_line_with_all_their_names() -> None:
    alive = {"found": [0.5, 0.25], "once": [0.375] * 2, "recycled": [0.375, 0.375 + 1e-16]}
    figure = figures.staircase_figure(Staircase([0, 1], alive))
    assert [trace.name for trace in figure.data] == ["found", "once, recycled"]
    assert figure.layout.meta["alt"] == (
        "found: 50.0% from layer 0, 25.0% from layer 1. once, recycled: 37.5% from layer 0."
    )


def test_comparison_marks_the_one_found() -> None:
    figure = figures.comparison_figure(Comparison(["found", "random"], [0.1, 0.4]))
    [bars] = figure.data
    assert bars.x == (0.1, 0.4) and figure.layout.yaxis.ticktext == ("found", "random")
    assert bars.marker.color == (palette.ORANGE, palette.GREY)


def test_two_plain_strategies_of_one_name_are_two_bars() -> None:
    [bars] = figures.comparison_figure(Comparison(["found", "x", "x"], [0.1, 0.4, 0.5])).data
    assert len(set(bars.y)) == 3


def test_importance_and_heatmap_draw_their_record() -> None:
    figure = figures.importance_figure(ParameterImportance(["a", "b"], [0.998, 0.002]))
    assert figure.data[0].x == (0.998, 0.002) and figure.layout.yaxis.ticktext == ("a", "b")
    assert figure.data[0].text == ("100%", "<1%")
    figure = figures.heatmap_figure(SampleHeatmap([7, 2], [1, 0], [[3.0, 2.0], [9.0, 8.0]]))
    heat, axes = figure.data[0], (figure.layout.yaxis.ticktext, figure.layout.xaxis.ticktext)
    assert [list(row) for row in heat.z] == [pytest.approx([3**0.5, 2**0.5]), [3.0, 8**0.5]]
    assert [list(row) for row in heat.text] == [["3.00000", "2.00000"], ["9.00000", "8.00000"]]
    assert axes == (("7", "2"), ("1", "0"))
    assert list(heat.customdata[1][0]) == [2, 1]  # trial 2, sample 1


@pytest.mark.parametrize("samples", [24, 256, 1000])
def test_the_labels_of_a_heatmap_have_room_in_a_notebook(samples: int) -> None:
    order = list(reversed(range(100, 100 + samples)))
    figure = figures.heatmap_figure(SampleHeatmap([0], order, [[0.5] * samples]))
    labels = figure.layout.xaxis.ticktext
    assert labels[0] == str(order[0])
    assert 12 <= len(labels) <= 24  # of 30 pixels each


@given(st.lists(st.floats(0, 5), min_size=1, max_size=30))
def test_the_bar_of_a_heatmap_says_divergences_where_their_colours_are(values: list[float]) -> None:
    """Colours go by the square root; few hard samples leave the others more than one colour."""
    record = SampleHeatmap([0], list(range(len(values))), [values])
    [heat] = figures.heatmap_figure(record).data
    assert not max(values) or (heat.zmin, heat.zmax) == (0, max(values) ** 0.5)  # plotly needs both
    assert list(heat.z[0]) == pytest.approx([value**0.5 for value in values])
    ticks, texts = heat.colorbar.tickvals or (), heat.colorbar.ticktext or ()
    assert [tick**2 for tick in ticks] == pytest.approx([float(text) for text in texts])
    highest = max(values) ** 0.5
    assert all(0 <= tick <= highest * 1.001 for tick in ticks)
    gaps = [one - other for one, other in pairwise(ticks)]
    assert all(gap >= 0.19 * highest for gap in gaps)
    if max(values) > 1e-3:
        assert 2 <= len(ticks) <= 6
