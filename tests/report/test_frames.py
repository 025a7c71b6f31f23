"""The records that figures draw, the table of trials and a run's folder."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from optuna import Study
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState, create_trial

from tests.fake_study import FakeObjective, fake_run, fake_space
from vflowopt_search import trials
from vflowopt_search.report import frames
from vflowopt_search.strategy import Strategy


@pytest.fixture(scope="module")
def study() -> Study:
    """40 raced trials, one that failed, one that is waiting, and foreign values."""
    study = fake_run(total=40).study
    strategy = study.trials[0].user_attrs[trials.STRATEGY]
    for value in (float("inf"), 0.001):
        partly = {trials.PER_SAMPLE: [value, None], trials.STRATEGY: strategy}
        study.add_trial(create_trial(value=value, user_attrs=partly))
    study.add_trial(create_trial(state=TrialState.FAIL, user_attrs={trials.FAILURE: "nan"}))
    study.enqueue_trial({})
    return study


@pytest.fixture
def empty() -> Study:
    return optuna.create_study(study_name="empty")


def test_history_is_finite_and_its_best_never_rises(study: Study) -> None:
    record = frames.history(study)
    assert len(record.trial) == len(record.value) == len(record.best) == len(record.outcome) == 41
    assert record.trial == sorted(record.trial)
    assert all(map(isfinite, record.value)) and all(map(isfinite, record.best))
    assert record.best == sorted(record.best, reverse=True)
    assert record.best[-1] == min(
        value
        for value, outcome in zip(record.value, record.outcome, strict=True)
        if outcome == "complete"
    )
    assert record.best[-1] > 0.001  # which is a partial mean
    assert record.label[:3] == list(fake_space().textbook())
    assert set(record.label[3:]) == {""}
    assert record.baselines == {}
    plain = {"uniform": 0.2, "random": 0.3}
    assert list(frames.history(study, plain).baselines.items()) == sorted(plain.items())


def test_staircase_holds_the_budget_of_every_strategy(study: Study) -> None:
    record = frames.staircase(study)
    assert record.layer == list(range(8))
    assert list(record.alive) == ["found", *fake_space().textbook()]
    for alive in record.alive.values():
        assert sum(alive) / 8 == pytest.approx(0.25, abs=1e-9)
        assert alive == sorted(alive, reverse=True)
    flat = frames.staircase(study, {"uniform": 0.2, "random": 0.3}).alive["random, uniform"]
    assert flat == pytest.approx([0.25] * 8)


def test_heatmap_has_the_best_trials_and_the_hardest_samples_first(study: Study) -> None:
    record = frames.sample_heatmap(study, top=2)
    best = trials.best_full(study.trials)
    assert best is not None and len(record.trial) == 2 and record.trial[0] == best.number
    means = [sum(row) / len(row) for row in record.value]
    assert means == sorted(means)
    hardness = [sum(column) for column in zip(*record.value, strict=True)]
    assert hardness == sorted(hardness, reverse=True)
    assert sorted(record.sample) == list(range(24))
    assert record.value[0][0] == trials.per_sample(best)[record.sample[0]]


def test_importance_finds_what_matters() -> None:
    record = frames.parameter_importance(fake_run(total=80, sampler="random").study)
    assert record.importance == sorted(record.importance, reverse=True)
    assert sum(record.importance) == pytest.approx(1)
    shares = dict(zip(record.parameter, record.importance, strict=True))
    # The fake objective looks at the first two and not at the last two.
    used = min(shares["vision_depth"], shares["entropy_weight"])
    assert used > 2 * max(shares["separators"], shares["positions"])


def test_importance_of_a_flat_objective_is_even() -> None:
    class Flat(FakeObjective):
        def measure(self, strategy: Strategy, indices: Any) -> list[float]:
            return [0.5 for _ in indices]

    record = frames.parameter_importance(fake_run(Flat(), total=12).study)
    assert sum(record.importance) == pytest.approx(1)
    assert len(set(record.importance)) == 1


def test_comparison_is_of_full_measurements_only(study: Study) -> None:
    record = frames.comparison(study, {"random": 9.0, "uniform": 0.2})
    assert record.divergence == sorted(record.divergence)
    assert {"found", "random", "uniform"} < set(record.name)
    stopped = {
        trial.user_attrs.get(trials.TEXTBOOK)
        for trial in study.trials
        if trials.outcome_of(trial) == "stopped"
    }
    assert stopped - {None} and not stopped & set(record.name)


def test_a_baseline_under_a_textbook_name_is_there_once(study: Study) -> None:
    """`attention-once` drops all at layer 0, as `attention` does; equal divergence to rounding."""
    alone = frames.comparison(study)
    value = alone.divergence[alone.name.index("attention-once")]
    twice = frames.comparison(study, {"attention": value * (1 + 1e-9), "random": 9.0})
    assert "attention" in twice.name and "attention-once" not in twice.name
    assert len(twice.name) == len(alone.name) + 1
    lines = frames.staircase(study, {"attention": value}).alive
    assert "attention" in lines and "attention-once" not in lines
    other = frames.comparison(study, {"attention": value * 1.01})
    assert {"attention", "attention-once"} <= set(other.name)


def test_a_strategy_of_several_stages_is_no_baseline_whatever_its_divergence(empty: Study) -> None:
    for trial in fake_run(total=3).study.trials:
        told = dict(trial.user_attrs) | {trials.WHOLE: True}
        told.pop(trials.PER_SAMPLE)
        empty.add_trial(create_trial(value=0.5, user_attrs=told))
    assert set(frames.comparison(empty, {"random": 0.5}).name) == {
        "found",
        "published-like",
        "pyramid",
        "random",
    }


def test_records_of_an_empty_study_are_empty(empty: Study) -> None:
    assert frames.history(empty).trial == []
    assert frames.staircase(empty).alive == {}
    assert frames.sample_heatmap(empty).trial == []
    assert frames.parameter_importance(empty).parameter == []
    assert frames.comparison(empty, {"random": 1.0}).name == []
    assert frames.trials_frame(empty).empty


def test_records_of_one_trial() -> None:
    study = fake_run(total=1).study
    assert frames.history(study).best == frames.history(study).value
    assert list(frames.staircase(study).alive) == ["found", "attention-once"]
    assert frames.sample_heatmap(study).trial == [0]
    assert frames.parameter_importance(study).parameter == []


def test_the_table_has_a_row_for_each_trial_that_ended(study: Study, tmp_path: Path) -> None:
    frames.write_trials(study, tmp_path / "trials.parquet")
    assert [file.name for file in tmp_path.iterdir()] == ["trials.parquet"]
    table = pd.read_parquet(tmp_path / "trials.parquet")
    assert len(table) == len(study.trials) - 1  # one is waiting
    assert list(table["number"]) == list(range(43))
    assert table["outcome"].value_counts().to_dict()["failed"] == 1
    best = trials.best_full(study.trials)
    assert best is not None
    row = table.loc[best.number]
    strategy = Strategy.loads(str(row["strategy"]))
    assert row["value"] == best.value
    assert row["stage1_keep"] == strategy.stages[0].keep_ratio
    assert row["vision_layer"] == strategy.importance.vision_layer
    assert row["param_entropy_weight"] == best.params["entropy_weight"]


def test_the_table_of_an_empty_study_can_be_written(empty: Study, tmp_path: Path) -> None:
    frames.write_trials(empty, tmp_path / "trials.parquet")
    assert pd.read_parquet(tmp_path / "trials.parquet").empty


def test_an_interrupted_study_can_be_looked_at() -> None:
    class Interrupted(FakeObjective):
        def measure(self, strategy: Strategy, indices: Any) -> list[float]:
            raise KeyboardInterrupt

    outcome = fake_run(Interrupted(), InMemoryStorage())
    assert frames.history(outcome.study).trial == []
    assert list(frames.trials_frame(outcome.study)["outcome"]) == ["abandoned"]
