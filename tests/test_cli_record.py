"""What a folder records of a search that is asked for again: neither fewer trials nor less time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.command import World, run
from vflowopt_search import run_folder

TRIALS = 3


@pytest.fixture(scope="module")
def searched(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a finished search."""
    output = tmp_path_factory.mktemp("runs") / "mine"
    result = run(*world.search(output, "--trials", str(TRIALS)))
    assert result.exit_code == 0, result.stderr
    return output


def test_fewer_trials_than_there_are_change_no_record(
    world: World, tmp_path: Path, searched: Path
) -> None:
    shutil.copytree(searched, output := tmp_path / "mine")
    before = json.loads((output / run_folder.SUMMARY).read_text())
    result = run(*world.search(output, "--trials", "2"))
    assert result.exit_code == 0, result.stderr
    told = f"mine: {TRIALS} trials (2 asked for; "
    assert result.stdout.startswith(told), result.stdout
    assert f"--trials {TRIALS} " in (output / run_folder.COMMAND).read_text()
    summary = json.loads((output / run_folder.SUMMARY).read_text())
    assert summary["trials"] == before["trials"] and summary["recipe"] == before["recipe"]
    page = (output / run_folder.REPORT).read_text()
    assert f"{TRIALS} of {TRIALS} done" in page


def test_seconds_are_of_all_processes_that_did_something(
    world: World, tmp_path: Path, searched: Path
) -> None:
    shutil.copytree(searched, output := tmp_path / "mine")
    file = output / run_folder.SUMMARY
    before = json.loads(file.read_text())
    file.write_text(json.dumps(before | {"seconds": 1000.0}))
    again = json.loads(run(*world.search(output, "--trials", str(TRIALS), "--json")).stdout)
    assert again["seconds"] == 1000.0
    more = json.loads(run(*world.search(output, "--trials", str(TRIALS + 1), "--json")).stdout)
    assert 1000.0 < more["seconds"] < 1600.0
