"""Which strategies an evaluation compares: those that exist, and none of a former one is lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command import World, run
from tests.labelled_world import Arguments, command, labelled_world
from vflowopt_search import run_folder
from vflowopt_search.cli.former_results import keep_former


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


def test_an_evaluation_of_other_things_is_kept_beside(world: World, tmp_path: Path) -> None:
    """A later call loses no row of a former one, unless it measures all of that again."""
    quick: Arguments = ["--no-self-check", "--json"]
    file, first, second = (
        tmp_path / name
        for name in (run_folder.EVALUATION, "evaluation-1.json", "evaluation-2.json")
    )
    assert run(*command(world, tmp_path, *quick)).exit_code == 0
    alone = file.read_bytes()
    more = run(*command(world, tmp_path, "baseline:random", *quick))
    assert not first.exists() and "is kept as" not in more.stderr  # the same, and one more
    both = file.read_bytes()
    fewer = run(*command(world, tmp_path, *quick))
    assert first.read_bytes() == both and json.loads(file.read_text())["metric"] == "exact_match"
    note = f"note: the former {file} has strategies that this one lacks; it is kept as {first}"
    assert note in fewer.stderr.splitlines()
    assert json.loads(alone)["strategies"] == json.loads(file.read_text())["strategies"]
    other = run(*command(world, tmp_path, *quick, "--metric", "contains"))
    assert json.loads(second.read_text())["metric"] == "exact_match"
    assert f"{file} is of another metric; it is kept as {second}" in other.stderr
    assert json.loads(other.stdout) == json.loads(file.read_text())


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({}, ""),
        ({"seconds": 3, "versions": {}}, ""),
        ({"points": [{"name": "b"}, {"name": "a"}, {"name": "c"}]}, ""),
        ({"points": [{"name": "a"}, {"name": "c"}]}, "has strategies that this one lacks"),
        ({"metric": "anls"}, "is of another metric"),
        ({"data": {"sha256": "2", "note": "n"}}, "is of other data"),
        ({"calibration": {"sha256": "2"}}, "is of other data"),
        ({"model": {"dtype": "bfloat16"}}, "is of other settings"),
        ({"seed": 2}, "is of other settings"),
    ],
)
def test_what_makes_a_result_another_one(
    changed: dict[str, object], reason: str, tmp_path: Path
) -> None:
    former = {"metric": "exact_match", "data": {"sha256": "1", "note": ""}, "seed": 1}
    former |= {"calibration": {"sha256": "1"}, "model": {"dtype": "float32"}, "seconds": 2}
    former |= {"points": [{"name": "a"}, {"name": "b"}]}
    path = tmp_path / run_folder.VALIDATION
    path.write_text(json.dumps(former))
    told = keep_former(path, former | changed)
    assert reason in told and bool(told) == bool(reason)
    assert path.exists() != bool(reason)
    assert (tmp_path / "validation-1.json").exists() == bool(reason)


@pytest.mark.parametrize("broken", ["{", "[1]", '{"data": 1}', '{"strategies": [1]}'])
def test_a_file_that_cannot_be_understood_is_kept(broken: str, tmp_path: Path) -> None:
    path = tmp_path / run_folder.EVALUATION
    assert keep_former(path, {}) == ""
    path.write_text(broken)
    assert "cannot be compared with this one; it is kept as" in keep_former(path, {})
    assert path.with_name("evaluation-1.json").read_text() == broken
