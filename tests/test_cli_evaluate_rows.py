"""Which strategies an evaluation compares: those that exist, and none of a former one is lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command import World, run
from tests.labelled_world import Arguments, command, labelled_world
from vflowopt_search import run_folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VFLOWOPT_SEARCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield labelled_world(tmp_path_factory.mktemp("world"))


def test_a_baseline_that_cannot_exist_is_left_out_and_named(world: World, tmp_path: Path) -> None:
    more: Arguments = ["baseline:fastv", "baseline:random", "--retain", "0.3", "--no-self-check"]
    result = run(*command(world, tmp_path, *more))
    assert result.exit_code == 0, result.stderr
    note = "baseline:fastv is left out: fastv keeps all visual tokens of its first layers, 33.3%"
    assert any(line.startswith(note) for line in result.stdout.splitlines())
    told = json.loads((tmp_path / run_folder.EVALUATION).read_text())
    assert [each["name"] for each in told["strategies"]] == ["mine", "random"]
    assert note.partition(": ")[2] in told["left_out"]["fastv"]


def test_where_no_baseline_can_exist_there_is_nothing_to_compare(
    world: World, tmp_path: Path
) -> None:
    typed: Arguments = ["evaluate", "baseline:fastv", "--retain", "0.3", "--model", world.model]
    data: Arguments = ["--data", world.samples.with_name("labelled.jsonl"), "--no-self-check"]
    result = run(*typed, *data, "--output", tmp_path)
    assert result.exit_code == 1 and result.stdout == ""
    assert "fastv keeps all visual tokens of its first layers" in result.stderr.splitlines()[-1]
