"""A run's folder: whatever is in it, also while the search runs, also without most of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.fake_study import fake_run
from tests.report.overlays import fake_overlays
from vflowopt_search import run_folder
from vflowopt_search.errors import StudyError
from vflowopt_search.outcome import context_sha256
from vflowopt_search.report import frames
from vflowopt_search.report.runs import Run, load_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a study of two trials, and nothing else in it."""
    fake_run(storage=tmp_path / run_folder.JOURNAL, total=2)
    return tmp_path


def test_of_a_running_study_there_is_the_best_so_far(folder: Path) -> None:
    run = load_run(folder)
    assert run.strategy is not None and run.strategy.name == run.name == "fake"
    assert (run.baselines, run.summary, run.evaluation, run.benchmark) == ({}, {}, {}, {})
    assert run.command is None and run.overlays is None
    assert run.retain == 0.25
    assert run.context["model"] == "fake"


def test_all_that_a_folder_may_hold_is_loaded(folder: Path) -> None:
    best = load_run(folder).strategy
    assert best is not None
    best.save(folder / run_folder.STRATEGY)
    (folder / run_folder.BASELINES).write_text(json.dumps({"random": 0.5}))
    (folder / run_folder.SUMMARY).write_text(json.dumps({"study": "fake"}))
    (folder / run_folder.COMMAND).write_text("vflowopt-search search\n")
    fake_overlays(best, folder / run_folder.OVERLAYS)
    before = sorted(path.name for path in folder.rglob("*"))
    run = load_run(folder)
    assert run.strategy == best
    assert run.baselines == {"random": 0.5}
    assert run.summary == {"study": "fake"}
    assert run.command == "vflowopt-search search"
    assert run.overlays is not None
    assert sorted(path.name for path in folder.rglob("*")) == before


def test_overlays_of_an_earlier_best_are_not_shown(folder: Path) -> None:
    best = load_run(folder).strategy
    assert best is not None
    fake_overlays(best.model_copy(update={"separators": "keep"}), folder / run_folder.OVERLAYS)
    assert best.separators == "drop"
    assert load_run(folder).overlays is None


def test_what_was_measured_for_another_study_is_not_shown(folder: Path) -> None:
    row = {"name": "random", "retained": 0.25, "divergence": 0.5}
    (folder / run_folder.BASELINES).write_text(json.dumps({"random": 0.5, "uniform": 0.4}))
    own = context_sha256(load_run(folder).study)
    for context, baselines in ((own, {"random": 0.5}), ("another", {})):
        told = {"comparison": [row, {**row, "name": "uniform", "divergence": None}]}
        (folder / run_folder.SUMMARY).write_text(json.dumps(told | {"context_sha256": context}))
        run = load_run(folder)
        assert run.baselines == baselines
        assert bool(run.summary) == bool(baselines)


def test_the_strategy_is_the_best_of_the_study_though_its_file_is_older(folder: Path) -> None:
    best = load_run(folder).strategy
    assert best is not None
    best.model_copy(update={"separators": "keep"}).save(folder / run_folder.STRATEGY)
    assert load_run(folder).strategy == best


def test_the_study_of_a_database_is_the_one_called_after_the_folder(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    outcome = fake_run(storage=url, total=2)
    run = load_run(tmp_path / "fake", storage=url)
    assert frames.history(run.study) == frames.history(outcome.study)
    with pytest.raises(StudyError, match="the database has no study 'other'"):
        load_run(tmp_path / "other", storage=url)


def kept_of_a_database(folder: Path, url: str) -> Run:
    """What a search leaves in its folder when its study is in a database."""
    study = fake_run(storage=url, total=2).study
    folder.mkdir()
    frames.write_trials(study, folder / run_folder.TRIALS)
    (folder / run_folder.COMMAND).write_text(f"vflowopt-search search m --storage {url} --seed 0\n")
    return Run(study)


def test_the_study_is_read_from_the_database_that_the_command_names(tmp_path: Path) -> None:
    searched = kept_of_a_database(tmp_path / "fake", f"sqlite:///{tmp_path / 'study.db'}")
    run = load_run(tmp_path / "fake")
    assert not run.restored
    assert frames.sample_heatmap(run.study) == frames.sample_heatmap(searched.study)
    assert frames.sample_heatmap(run.study).trial  # which no table has
    (tmp_path / "fake" / run_folder.TRIALS).unlink()  # as while the search runs
    assert load_run(tmp_path / "fake").name == "fake"


def test_a_database_out_of_reach_is_named_and_not_made(tmp_path: Path) -> None:
    folder, file = tmp_path / "fake", tmp_path / "study.db"
    kept_of_a_database(folder, f"sqlite:///{file}")
    file.rename(tmp_path / "moved.db")
    told = rf"should be in sqlite:///{file}, but there is no file {file}; .* with --storage, or"
    with pytest.raises(StudyError, match=told):
        load_run(folder)
    assert not file.exists()
    assert not load_run(folder, storage=f"sqlite:///{tmp_path / 'moved.db'}").restored
    file.write_text("this is no database")
    with pytest.raises(StudyError, match=rf"in sqlite:///{file}, but the sqlite database cannot"):
        load_run(folder)
    (folder / run_folder.COMMAND).unlink()  # the way out that the sentence names
    assert load_run(folder).restored


def test_a_command_that_is_none_is_one_sentence(folder: Path) -> None:
    (folder / run_folder.COMMAND).write_text("vflowopt-search 'search\n")
    with pytest.raises(StudyError, match=r"command\.txt is no command line \(No closing quot"):
        load_run(folder)


def test_a_study_in_no_folder_is_a_run_too() -> None:
    run = Run(fake_run(total=1).study)
    assert run.strategy is None and run.folder is None and run.retain == 0.25


def test_a_folder_without_one_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        StudyError, match=r"has neither study\.journal nor trials\.parquet; give the"
    ):
        load_run(tmp_path)
    (tmp_path / run_folder.JOURNAL).touch()
    with pytest.raises(StudyError, match="holds 0 studies but a run has one"):
        load_run(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        (run_folder.BASELINES, "{", r"baselines\.json is not valid JSON"),
        (run_folder.SUMMARY, "[]", r"summary\.json holds no mapping"),
        ("overlays/overlays.json", '{"format": "vflowopt-overlays/9"}', "record it again"),
        ("overlays/overlays.json", "\xff", "record it again"),
    ],
)
def test_a_broken_file_is_one_sentence(
    folder: Path, name: str, content: str, sentence: str
) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(StudyError, match=sentence):
        load_run(folder)
    shutil.rmtree(folder)
