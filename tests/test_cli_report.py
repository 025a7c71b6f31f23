"""`report` and `dashboard`, and what `search` leaves for them."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import optuna
import pytest
from optuna.artifacts import FileSystemArtifactStore, get_all_artifact_meta

from tests.command import World, run
from vflowopt_search import run_folder
from vflowopt_search.report import dashboard
from vflowopt_search.report.overlay_record import load_overlays
from vflowopt_search.report.runs import load_run

TRIALS = 5


@pytest.fixture(scope="module")
def searched(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a finished search."""
    output = tmp_path_factory.mktemp("runs") / "mine"
    result = run(*world.search(output, "--trials", str(TRIALS)))
    assert result.exit_code == 0, result.stderr
    return output


@pytest.fixture
def copied(searched: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    shutil.copytree(searched, tmp_path / "mine")
    return tmp_path / "mine"


def test_search_records_overlays_of_its_best(searched: Path) -> None:
    record = load_overlays(searched / run_folder.OVERLAYS)
    assert record is not None
    assert {sample.role for sample in record.samples} == {"worst", "best"}  # of six
    assert load_run(searched).overlays == record
    assert (searched / run_folder.REPORT).read_text().count("<article class='card'>") == 6


def test_search_attaches_pictures_of_every_best(searched: Path) -> None:
    study = load_run(searched).study
    attached = get_all_artifact_meta(study_or_trial=study)
    names = sorted(meta.filename for meta in attached)
    best_so_far, bests = float("inf"), []
    for trial in study.trials:
        if trial.value is not None and trial.value < best_so_far:
            best_so_far = trial.value
            bests.append(trial.number)
    wanted = [f"trial-{n:04}-{what}" for n in bests for what in ("overlay.png", "staircase.svg")]
    assert names == wanted
    store = FileSystemArtifactStore(searched / run_folder.ARTIFACTS)
    for meta in attached:
        with store.open_reader(meta.artifact_id) as reader:
            content = reader.read()
        assert content.startswith(b"<svg" if meta.filename.endswith("svg") else b"\x89PNG")
        assert meta.mimetype.startswith("image/")


def test_search_writes_the_command_that_makes_it_again(searched: Path, world: World) -> None:
    command = (searched / run_folder.COMMAND).read_text().split()
    assert command[:3] == ["vflowopt-search", "search", str(world.model)]
    again = run(*command[1:], "--json")
    assert again.exit_code == 0, again.stderr
    assert json.loads(again.stdout)["trials"]["done"] == TRIALS
    page = (searched / run_folder.REPORT).read_text()
    assert " ".join(command) in page.replace("<span>", "").replace("</span>", "")


def test_a_refused_search_leaves_the_command_alone(copied: Path, world: World) -> None:
    before = (copied / run_folder.COMMAND).read_text()
    assert run(*world.search(copied, "--trials", str(TRIALS), "--seed", "9")).exit_code == 1
    assert (copied / run_folder.COMMAND).read_text() == before


def test_report_needs_no_model(
    searched: Path, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loads(*args: Any) -> None:
        raise AssertionError("a report of what was recorded must load no model")

    monkeypatch.setattr("vflowopt_search.model_source.load_model", loads)
    page = copied / run_folder.REPORT
    before = page.read_text()
    page.unlink()
    result = run("report", copied)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"report  {page}\n"
    assert f"not in the report of {copied}: accuracy, speed-up and KV cache;" in result.stderr
    # commands that add something name the folder
    assert page.read_text().replace(str(copied), str(searched)) == before


def test_a_result_that_was_kept_is_shown_as_one(copied: Path, world: World) -> None:
    (copied / run_folder.JOURNAL).unlink()
    shutil.rmtree(copied / run_folder.OVERLAYS)
    told = run("report", copied)
    assert told.exit_code == 0, told.stderr
    assert f"{copied} holds a result and not the study (study.journal)" in told.stderr
    assert f"not in the report of {copied}: divergence of each sample, accuracy," in told.stderr
    page = (copied / run_folder.REPORT).read_text()
    assert "This is a result that was kept" in page and "history-0-0" in page
    samples = ("--calibration", world.samples, "--columns", "prompt=question")
    again = run("report", copied, "--model", world.model, *samples)
    assert again.exit_code == 0, again.stderr
    assert again.stderr.splitlines()[-1].startswith("note: not in the report of")
    assert "overlays" not in again.stderr.splitlines()[-1]
    assert (copied / run_folder.REPORT).read_text().count("<article class='card'>") == 6


def test_report_compares_runs(searched: Path, copied: Path, tmp_path: Path) -> None:
    page = tmp_path / "both.html"
    result = run("report", searched, copied, "--output", page, "--title", "Two of them", "--json")
    told = json.loads(result.stdout)
    missing = told.pop("missing")
    assert told == {"report": str(page), "bytes": page.stat().st_size, "runs": ["mine", "mine"]}
    assert {(gap["run"], gap["what"]) for gap in missing} == {
        (str(folder), what)
        for folder in (searched, copied)
        for what in ("accuracy", "speed-up and KV cache")
    }
    assert "<h1>Two of them</h1>" in page.read_text() and "budget-all" in page.read_text()


def test_overlays_can_be_recorded_later(copied: Path, world: World) -> None:
    before = load_overlays(copied / run_folder.OVERLAYS)
    shutil.rmtree(copied / run_folder.OVERLAYS)
    assert run("report", copied).exit_code == 0
    assert "None were recorded of the strategy found" in (copied / run_folder.REPORT).read_text()
    samples = ("--calibration", world.samples, "--columns", "prompt=question")
    result = run("report", copied, "--model", world.model, *samples)
    assert result.exit_code == 0, result.stderr
    assert load_overlays(copied / run_folder.OVERLAYS) == before
    assert (
        "None were recorded of the strategy found" not in (copied / run_folder.REPORT).read_text()
    )


def test_overlays_of_other_samples_are_refused(copied: Path, world: World) -> None:
    other = ("--calibration", world.samples, "--prompt", "why ?")
    result = run("report", copied, "--model", world.model, *other)
    assert result.exit_code == 1
    assert "these are not the samples of study 'mine'" in result.stderr


def test_a_running_study_has_a_report(copied: Path) -> None:
    for name in (run_folder.STRATEGY, run_folder.SUMMARY, run_folder.BASELINES):
        (copied / name).unlink()
    result = run("report", copied)
    assert result.exit_code == 0, result.stderr
    assert f"{TRIALS} done" in (copied / run_folder.REPORT).read_text()


def test_wrong_folders_are_one_sentence(tmp_path: Path) -> None:
    for command in ("report", "dashboard"):
        result = run(command, tmp_path)
        assert result.exit_code == 1
        last = result.stderr.splitlines()[-1]
        assert (
            "has neither study.journal nor trials.parquet" in last
            or "optuna-dashboard is not installed" in last
        )


def test_the_dashboard_is_served_on_this_machine_alone(
    searched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: dict[str, Any] = {}

    def run_server(storage: Any, **options: Any) -> None:
        served.update(options, names=optuna.get_all_study_names(storage))

    stand_in = ModuleType("optuna_dashboard")
    stand_in.run_server = run_server  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "optuna_dashboard", stand_in)
    monkeypatch.setattr(dashboard, "find_spec", lambda name: object())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        taken = run("dashboard", searched, "--port", str(port))
    assert taken.exit_code == 1 and f"port {port} cannot be used" in taken.stderr
    result = run("dashboard", searched, "--port", str(port))
    assert result.exit_code == 0, result.stderr
    assert f"http://127.0.0.1:{port}/" in result.stdout
    assert (served["host"], served["port"], served["names"]) == ("127.0.0.1", port, ["mine"])


def test_without_the_extra_the_dashboard_says_how_to_get_it(
    searched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dashboard, "find_spec", lambda name: None)
    result = run("dashboard", searched)
    assert result.exit_code == 1
    assert "pip install 'vflowopt-search[dashboard]'" in result.stderr
