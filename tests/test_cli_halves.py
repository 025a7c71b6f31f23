"""A set of few samples is searched on half, and the other half is held out."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

from tests.command import World, run
from vflowopt_search import run_folder
from vflowopt_search.search_space import SearchSpace
from vflowopt_search.strategy import CalibrationIdentity, Strategy
from vflowopt_search.textbook import unbeaten

NOTE = (
    "note: 10 samples can be used, fewer than twice 256: the search sees 5 of them, and the others "
    "about other images are held out"
)


def search(world: World, output: Path, *more: str | Path) -> list[str | Path]:
    """A search that is told no number of samples."""
    named: list[str | Path] = ["search", world.model, "--calibration", world.samples]
    few: list[str | Path] = ["--trials", "1", "--no-self-check", "--output", output]
    return [*named, *few, *more]


def searched_on(folder: Path) -> CalibrationIdentity:
    origin = Strategy.load(folder / run_folder.STRATEGY).provenance
    assert origin is not None and origin.calibration is not None
    return origin.calibration


def test_half_of_few_samples_is_held_out_unless_all_are_asked_for(
    world: World, tmp_path: Path
) -> None:
    result = run(*search(world, tmp_path / "mine"))
    assert result.exit_code == 0, result.stderr
    assert result.stderr.splitlines().count(NOTE) == 1
    assert result.stderr.count("fewer than twice") == 1
    found = searched_on(tmp_path / "mine")
    assert (found.samples, found.held_out) == (5, 5)
    told = json.loads((tmp_path / "mine" / run_folder.SUMMARY).read_text())
    assert all(row["held_out"] for row in told["comparison"])
    again = run(*search(world, tmp_path / "mine"))
    assert (again.exit_code, searched_on(tmp_path / "mine")) == (0, found)
    words = shlex.split((tmp_path / "mine" / run_folder.COMMAND).read_text())[1:]
    assert run(*words).exit_code == 0
    assert run(*words, "--output", tmp_path / "anew").exit_code == 0
    assert searched_on(tmp_path / "anew") == searched_on(tmp_path / "mine") == found
    result = run(*search(world, tmp_path / "all", "--no-held-out"))
    assert result.exit_code == 0, result.stderr
    assert searched_on(tmp_path / "all").samples == 10
    assert "held out" not in result.stderr


def test_a_study_that_saw_all_samples_goes_on_with_them_alone(world: World, tmp_path: Path) -> None:
    """As those that were made before small sets were halved."""
    whole = search(world, tmp_path / "mine", "--samples", "10")
    assert run(*whole).exit_code == 0
    result = run(*search(world, tmp_path / "mine"))
    assert result.exit_code == 1
    assert "was made with samples 10 but is resumed with samples 5; give the same" in result.stderr
    assert run(*whole).exit_code == 0


def test_overlays_of_the_half_that_was_seen_can_be_recorded_later(
    world: World, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    assert run(*search(world, folder)).exit_code == 0
    shutil.rmtree(folder / run_folder.OVERLAYS)
    again = run("report", folder, "--model", world.model, "--calibration", world.samples)
    assert again.exit_code == 0, again.stderr
    assert any((folder / run_folder.OVERLAYS).iterdir())


def test_a_textbook_strategy_that_nothing_beat_is_told(world: World, tmp_path: Path) -> None:
    result = run(*search(world, tmp_path / "mine"))
    assert result.exit_code == 0, result.stderr
    assert "No trial beat" not in result.stdout  # the only one is of the textbook
    names = SearchSpace.load("vflowopt").textbook
    drawn = run(*search(world, tmp_path / "mine"), "--trials", str(len(names) + 1))
    assert drawn.exit_code == 0, drawn.stderr
    summary = json.loads((tmp_path / "mine" / run_folder.SUMMARY).read_text())
    name = summary["best"]["textbook"]
    assert name in names
    assert unbeaten(name) in drawn.stdout.splitlines()
