"""What is not in a report is named, with the reason and the command that adds it."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import optuna
import pytest

from tests.fake_study import FACTS
from tests.report.overlays import whole_run
from vflowopt_search import run_folder
from vflowopt_search.report.gaps import gaps, search_command
from vflowopt_search.report.runs import Run, load_run

SEARCH = "vflowopt-search search a/model --calibration 'my data.jsonl' --columns image=i"


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A search that ended, without held-out samples; nothing else was measured."""
    folder = tmp_path_factory.mktemp("ended")
    whole_run(folder)
    (folder / run_folder.COMMAND).write_text(f"{SEARCH} --no-held-out")
    (folder / run_folder.SUMMARY).write_text(json.dumps({"study": "fake"}))
    return load_run(folder)


def options(command: str) -> dict[str, str]:
    words = shlex.split(command)
    return {one: other for one, other in pairwise(words) if one[:2] == "--"}


def test_all_that_other_commands_measure_is_named_with_its_command(ended: Run) -> None:
    missing = gaps(ended)
    assert list(missing) == ["held-out samples", "accuracy", "speed-up and KV cache"]
    assert missing["held-out samples"].command == SEARCH
    assert "told --no-held-out" in missing["held-out samples"].why
    assert missing["accuracy"].command.split()[:3] == [
        "vflowopt-search",
        "evaluate",
        str(ended.folder),
    ]
    bench = missing["speed-up and KV cache"].command
    assert shlex.split(bench) == ["vflowopt-search", "bench", str(ended.folder), "--model", "fake"]


def test_a_model_that_the_strategy_names_is_not_typed_again(ended: Run) -> None:
    assert ended.strategy is not None
    identity = FACTS.identity.model_copy(update={"name": "random my/config.json"})
    found = ended.strategy.model_copy(update={"model": identity})
    command = gaps(replace(ended, strategy=found))["speed-up and KV cache"].command
    assert options(command) == {}


def test_overlays_are_recorded_with_the_options_of_the_search(ended: Run) -> None:
    command = gaps(replace(ended, overlays=None))["overlays"].command
    assert options(command) == {
        "--model": "fake",
        "--calibration": "my data.jsonl",
        "--columns": "image=i",
    }
    unknown = gaps(replace(ended, overlays=None, command=None))["overlays"].command
    assert options(unknown)["--calibration"] == "DATA"


def test_overlays_of_a_study_in_a_database_are_recorded_with_it(ended: Run) -> None:
    url = "sqlite:///a study.db"
    stored = replace(ended, overlays=None, command=f"{SEARCH} --storage '{url}' --seed 0")
    assert options(gaps(stored)["overlays"].command)["--storage"] == url
    assert "--storage" not in gaps(replace(ended, overlays=None))["overlays"].command


def test_why_there_are_no_overlays_is_what_is_in_the_folder(ended: Run, tmp_path: Path) -> None:
    def why() -> str:
        return gaps(replace(ended, folder=tmp_path, overlays=None))["overlays"].why

    folder = tmp_path / run_folder.OVERLAYS
    assert why().startswith("None were recorded")
    folder.mkdir()
    assert why().startswith("The folder has overlays/ but not its record (overlays.json)")
    (folder / "overlays.json").write_text("{}")
    assert why().startswith("Those in the folder are of another strategy")


def test_measurements_of_another_strategy_are_called_so(ended: Run) -> None:
    other: dict[str, Any] = {"format": "vflowopt-something/1"}
    missing = gaps(replace(ended, evaluation=other, benchmark=other))
    for what, file in (("accuracy", "evaluation"), ("speed-up and KV cache", "benchmark")):
        assert missing[what].why.startswith(f"{file}.json is of another strategy than the one")


def test_a_search_that_has_not_ended_says_how_to_go_on(ended: Run) -> None:
    missing = gaps(replace(ended, summary={}))
    assert "held-out samples" not in missing
    gap = missing["end of the search"]
    assert "after 20 trials" in gap.why and gap.command == ended.command


def test_a_kept_result_of_a_search_that_had_not_ended_says_so(ended: Run) -> None:
    kept = replace(ended, restored=True)
    assert "end of the search" not in gaps(kept)
    wanted = {"wanted": ["divergence", "held_out"]}
    missing = gaps(replace(kept, summary=wanted))
    why = missing["end of the search"].why
    assert why.startswith("The search was interrupted") and "held-out" in why
    assert why.endswith("The same search makes the study again, and measures it:")
    assert "held-out samples" not in missing and "divergence of each sample" in missing


def test_an_empty_study_lacks_a_strategy_and_nothing_else() -> None:
    assert list(gaps(Run(optuna.create_study(study_name="empty")))) == ["strategy"]


def test_a_recipe_is_a_command_too(ended: Run) -> None:
    recipe = {"model": "testbed", "retain": 0.1, "space": "vflowopt"}
    run = replace(ended, command=None, summary={"recipe": recipe})
    assert search_command(run) == "vflowopt-search search testbed --space vflowopt --retain 0.1"
    assert search_command(replace(run, summary={})) == ""
    assert search_command(ended).endswith("--no-held-out")


def test_the_page_says_it(ended: Run, tmp_path: Path) -> None:
    from vflowopt_search.report.page import write_report

    write_report(ended, tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert "Not in this report" in page and "told --no-held-out" in page
    assert all(f"<h3>{what}</h3>" in page for what in gaps(ended))
