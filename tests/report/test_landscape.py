"""Slices, parallel coordinates and budget curves hold what the trials were."""

from __future__ import annotations

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna import Study

from tests.fake_study import fake_run
from vflowopt_search import trials
from vflowopt_search.report import landscape, landscape_figures
from vflowopt_search.report.landscape import GROUPS


@pytest.fixture(scope="module")
def study() -> Study:
    return fake_run(total=40).study


def test_a_slice_has_every_trial_that_has_the_parameter(study: Study) -> None:
    records = {record.parameter: record for record in landscape.slices(study)}
    assert {"vision_depth", "recycling", "recycling_cell", "entropy_weight"} <= set(records)
    cell = records["recycling_cell"]
    having = [trial for trial in study.trials if "recycling_cell" in trial.params]
    assert cell.value == [trial.params["recycling_cell"] for trial in having]
    assert cell.divergence == [trial.value for trial in having]
    assert cell.full == [trials.is_full(trial) for trial in having]
    assert cell.log and not cell.choices
    assert records["recycling"].choices == ["yes", "no"]
    assert set(records["recycling"].value) == {"yes", "no"}
    best = trials.best_full(study.trials)
    assert best is not None
    for record in records.values():
        if record.best is not None:
            assert record.divergence[record.best] == best.value


def test_parameters_come_in_the_order_asked_for(study: Study) -> None:
    names = [record.parameter for record in landscape.slices(study, ["separators", "positions"])]
    assert names[:2] == ["separators", "positions"] and names[2:] == sorted(names[2:])


def test_lines_run_within_their_axes_from_the_best_to_the_worst(study: Study) -> None:
    record = landscape.parallel_coordinates(study)
    best = trials.best_full(study.trials)
    assert best is not None and record.trial[0] == best.number
    assert sorted(record.trial) == [trial.number for trial in study.trials]
    assert [GROUPS.index(group) for group in record.group] == sorted(
        map(GROUPS.index, record.group)
    )
    assert record.group.count(GROUPS[0]) == 4
    for places, number in zip(record.place, record.trial, strict=True):
        params = study.trials[number].params
        for axis, place in zip(record.axes, places, strict=True):
            assert (place is None) == (axis.parameter not in params)
            assert place is None or 0 <= place <= 1
    recycling = next(axis for axis in record.axes if axis.parameter == "recycling")
    assert recycling.place == [0, 1] and recycling.label == ["yes", "no"]


def test_a_whole_number_of_few_steps_has_a_label_at_each(study: Study) -> None:
    [axis] = [a for a in landscape.parallel_coordinates(study).axes if a.parameter == "num_stages"]
    assert axis.label == ["1", "2", "3"] and axis.place == pytest.approx([0, 0.5, 1])


def test_values_stand_beside_the_lines_or_on_a_background(study: Study) -> None:
    record = landscape.parallel_coordinates(study)
    figure = landscape_figures.parallel_figure(record)
    assert all(trace.mode == "lines" for trace in figure.data)
    told = {(label.y, label.x): label for label in figure.layout.annotations}
    for number, (axis, name) in enumerate(
        zip(record.axes, figure.layout.yaxis.ticktext, strict=True)
    ):
        assert name.startswith(axis.parameter)
        for place, label in zip(axis.place, axis.label, strict=True):
            if place == 0:
                assert f">{label}</span>" in name  # below the name, left of the lines
                continue
            assert told[number, place].text == label and told[number, place].bgcolor
            assert (told[number, place].xanchor == "left") == (place == 1)


def test_a_slice_alone_says_what_its_points_are_and_small_ones_leave_it_to_the_page(
    study: Study,
) -> None:
    records = landscape.slices(study)
    alone = landscape_figures.slice_figure(records[0])
    assert alone.layout.yaxis.title.text == "mean divergence"
    assert alone.layout.showlegend is not False
    names = [trace.name for trace in alone.data]
    assert names[:2] == ["stopped early", "measured on all samples"]
    for small in landscape_figures.slice_figures(records):
        assert small.layout.showlegend is False and small.layout.yaxis.title.text is None
        assert small.layout.height < alone.layout.height


def test_a_logarithmic_parameter_lies_on_a_logarithmic_axis(study: Study) -> None:
    record = landscape.parallel_coordinates(study)
    names = [axis.parameter for axis in record.axes]
    column = names.index("recycling_cell")
    assert record.axes[column].label == ["2", "24"]
    for places, number in zip(record.place, record.trial, strict=True):
        if (place := places[column]) is not None:
            value = study.trials[number].params["recycling_cell"]
            assert 2 * 12**place == pytest.approx(value)


@given(st.integers(1, 40))
def test_of_a_long_study_the_best_are_always_shown(study: Study, most: int) -> None:
    record = landscape.parallel_coordinates(study, most=most)
    everything = landscape.parallel_coordinates(study)
    assert len(record.trial) == most
    assert record.trial[: most // 2] == everything.trial[: most // 2]
    assert set(record.trial) <= set(everything.trial)


def test_of_an_empty_study_there_is_nothing() -> None:
    empty = optuna.create_study(study_name="empty")
    assert landscape.slices(empty) == []
    record = landscape.parallel_coordinates(empty)
    assert (record.axes, record.trial) == ([], [])


def test_figures_draw_their_records(study: Study) -> None:
    record = next(r for r in landscape.slices(study) if r.best is not None)
    stopped, full, best = landscape_figures.slice_figure(record).data
    assert len(stopped.x) + len(full.x) == len(record.value)
    assert best.y == (record.divergence[record.best or 0],)
    lines = landscape.parallel_coordinates(study)
    drawn = {trace.name: trace for trace in landscape_figures.parallel_figure(lines).data}
    step = len(lines.axes) + 1
    for group in GROUPS:
        assert len(drawn[group].x) == step * lines.group.count(group)
    assert list(drawn[GROUPS[0]].x[-step:-1]) == lines.place[0]  # the best is drawn last
