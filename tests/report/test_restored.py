"""A study from its table of trials says what the study says, but for single samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from optuna.trial import TrialState

from tests.fake_study import fake_run
from vflowopt_search import run_folder
from vflowopt_search.errors import StudyError
from vflowopt_search.report import frames, landscape
from vflowopt_search.report.gaps import gaps
from vflowopt_search.report.runs import Run, load_run
from vflowopt_search.resources import studies_folder
from vflowopt_search.trials import is_full

SUMMARY: dict[str, Any] = {
    "study": "kept",
    "recipe": {"model": "fake", "retain": 0.25, "samples": 24, "metric": "last_token_cosine"},
    "comparison": [{"name": "found", "divergence": 0.1}, {"name": "random", "divergence": 2.0}],
}


@pytest.fixture(scope="module")
def whole() -> Run:
    outcome = fake_run(total=60)
    return Run(outcome.study, outcome.best)


@pytest.fixture
def folder(whole: Run, tmp_path: Path) -> Path:
    """What is kept of a run: its strategy, its table and its summary."""
    assert whole.strategy is not None
    whole.strategy.save(tmp_path / run_folder.STRATEGY)
    frames.write_trials(whole.study, tmp_path / run_folder.TRIALS)
    (tmp_path / run_folder.SUMMARY).write_text(json.dumps(SUMMARY))
    return tmp_path


def test_what_the_table_says_is_what_the_study_says(whole: Run, folder: Path) -> None:
    kept = load_run(folder)
    assert kept.restored and kept.name == "kept" and kept.retain == 0.25
    assert kept.baselines == {"random": 2.0}
    assert frames.history(kept.study) == frames.history(whole.study)
    assert frames.staircase(kept.study) == frames.staircase(whole.study)
    assert frames.comparison(kept.study) == frames.comparison(whole.study)
    drawn, true = (landscape.slices(run.study) for run in (kept, whole))
    assert {s.parameter: s.value for s in drawn} == {s.parameter: s.value for s in true}


def test_single_samples_are_not_made_up(folder: Path) -> None:
    kept = load_run(folder)
    assert frames.sample_heatmap(kept.study).trial == []
    missing = gaps(kept)["divergence of each sample"]
    assert "trials.parquet has the mean of each trial" in missing.why
    assert missing.command.startswith("vflowopt-search search fake --samples 24 --retain 0.25")


def test_a_folder_without_its_strategy_and_summary_still_shows_its_trials(
    whole: Run, folder: Path
) -> None:
    for name in (run_folder.STRATEGY, run_folder.SUMMARY):
        (folder / name).unlink()
    kept = load_run(folder)
    assert kept.strategy is not None and whole.strategy is not None
    assert kept.strategy.stages == whole.strategy.stages
    assert kept.name == folder.name and kept.retain is None


def test_trials_that_had_not_ended_leave_a_gap_in_the_numbers(folder: Path) -> None:
    table = pd.read_parquet(folder / run_folder.TRIALS)
    table[table["number"] != 3].to_parquet(folder / run_folder.TRIALS)
    study = load_run(folder).study
    assert study.trials[3].state is TrialState.FAIL and not study.trials[3].params
    assert study.trials[4].params["vision_depth"] == table["param_vision_depth"][4]


def test_the_shipped_space_gives_its_ranges_and_so_the_same_importance() -> None:
    study = load_run(studies_folder() / "quickstart").study
    kinds = {name: kind for trial in study.trials for name, kind in trial.distributions.items()}
    cell = kinds["recycling_cell"]
    assert isinstance(cell, optuna.distributions.FloatDistribution) and cell.log
    assert len(study.trials) == 400 and sum(map(is_full, study.trials)) == 100


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, r"trials\.parquet is no Parquet file"),
        ({"number": [0]}, "has no column outcome, samples_seen, strategy, value"),
    ],
)
def test_a_file_that_is_no_table_is_one_sentence(
    tmp_path: Path, content: dict[str, list[int]] | None, sentence: str
) -> None:
    if content is None:
        (tmp_path / run_folder.TRIALS).write_bytes(b"not a table")
    else:
        pd.DataFrame(content).to_parquet(tmp_path / run_folder.TRIALS)
    with pytest.raises(StudyError, match=sentence):
        load_run(tmp_path)
