"""`evaluate` end to end: on a tiny random model, and on the shipped one."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from tests.command import World, run, spawn
from tests.labelled_world import Arguments, command, labelled_world
from vflowopt_search import run_folder
from vflowopt_search.checkout import commit
from vflowopt_search.cli.candidates import read_candidates
from vflowopt_search.cli.options import MetricName, ScoreName
from vflowopt_search.divergence import ANSWER_METRICS
from vflowopt_search.divergence import METRICS as DIVERGENCES
from vflowopt_search.evaluate.metrics import METRICS
from vflowopt_search.resources import studies_folder
from vflowopt_search.strategy import Strategy

QUICKSTART = studies_folder() / "quickstart" / run_folder.STRATEGY


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VFLOWOPT_SEARCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield labelled_world(tmp_path_factory.mktemp("world"))


def test_other_draws_of_the_random_baseline_are_named_by_their_seeds() -> None:
    named = ["baseline:random", "baseline:random:1", "baseline:random:2", "baseline:random:1"]
    assert read_candidates(named).baselines == ("random", "random:1", "random:2")
    several = ["baseline:random:1", "baseline:random:0-2", "baseline:random:11-11"]
    assert read_candidates(several).baselines == ("random:1", "random:0", "random:2", "random:11")


def test_it_writes_and_prints_what_it_found(world: World, tmp_path: Path) -> None:
    result = run(*command(world, tmp_path / "out", "baseline:random", "--metric", "vqa_accuracy"))
    assert result.exit_code == 0, result.stderr
    assert "12 samples about 6 images, vqa_accuracy" in result.stdout
    assert "12 instead of 1,000 samples: the data has no more" in result.stdout.splitlines()
    lines = {line.split()[0]: line.split() for line in result.stdout.splitlines() if line.split()}
    assert {"unpruned", "mine", "random", "even", "odd"} <= set(lines)
    assert float(lines["mine"][1].rstrip("%")) == pytest.approx(45, abs=4)  # of 16 tokens
    assert float(lines["random"][1].rstrip("%")) == pytest.approx(45, abs=4)
    assert lines["even"][1] == lines["odd"][1] == "6"
    assert "answering: 36/36" in result.stderr
    stored = json.loads((tmp_path / "out" / run_folder.EVALUATION).read_text())
    assert stored["format"] == "vflowopt-evaluation/1"
    assert stored["data"]["by"] == "kind"
    assert stored["model"]["decoding"]["max_new_tokens"] == 4
    assert [each["name"] for each in stored["strategies"]] == ["mine", "random"]
    for each in stored["strategies"]:
        assert each["retained"] == pytest.approx(0.45, abs=0.04)
        assert [group["samples"] for group in each["groups"]] == [6, 6]


def test_again_it_asks_nothing(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = json.loads(run(*command(world, tmp_path), "--json").stdout)
    assert first == json.loads((tmp_path / run_folder.EVALUATION).read_text())
    assert first["versions"].get("commit") == commit()

    def asked_again(*args: Any) -> None:
        raise AssertionError("nothing is missing")

    monkeypatch.setattr("vflowopt_search.evaluate.answers._answer", asked_again)
    again = json.loads(run(*command(world, tmp_path), "--json").stdout)
    assert again | {"seconds": 0} == first | {"seconds": 0}
    # another metric and other groups need no new answers
    other: Arguments = ["--metric", "contains", "--by", "letter"]
    told = json.loads(run(*command(world, tmp_path), *other, "--json").stdout)
    assert [group["name"] for group in told["strategies"][0]["groups"]] == ["0", "1"]


def test_killed_in_the_middle_it_goes_on(world: World, tmp_path: Path) -> None:
    more: Arguments = ["--batch-size", "1", "--no-self-check"]
    whole = json.loads(run(*command(world, tmp_path / "whole", *more), "--json").stdout)
    answers = tmp_path / "killed" / run_folder.ANSWERS
    with spawn(*command(world, tmp_path / "killed", *more), cwd=tmp_path) as process:
        deadline = time.monotonic() + 60
        while not answers.exists() or answers.read_bytes().count(b"\n") < 6:
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    before = answers.read_bytes()
    kept = before[: before.rfind(b"\n") + 1]
    assert kept.count(b"\n") < 26, "it was killed too late to show anything"
    resumed = json.loads(run(*command(world, tmp_path / "killed", *more), "--json").stdout)
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    assert answers.read_bytes().startswith(kept)
    items = [(line["under"], line["item"]) for line in lines if "under" in line]
    assert len(items) == len(set(items)) == 24
    for each in (whole, resumed):
        each["seconds"] = each["strategies"][0]["speed"] = 0
    assert resumed == whole


def test_multiple_choice_lists_the_options(world: World, tmp_path: Path) -> None:
    columns = "answer=letter,options=options,prompt=question"
    more: Arguments = ["--metric", "multiple_choice", "--columns", columns]
    told = json.loads(run(*command(world, tmp_path, *more), "--json").stdout)
    plain = json.loads(run(*command(world, tmp_path), "--json").stdout)
    assert told["data"]["sha256"] != plain["data"]["sha256"]
    assert told["metric"] == "multiple_choice"


def test_an_instruction_is_asked_and_told(world: World, tmp_path: Path) -> None:
    told = json.loads(run(*command(world, tmp_path, "--instruction", "be kind"), "--json").stdout)
    plain = json.loads(run(*command(world, tmp_path), "--json").stdout)
    assert told["data"]["instruction"] == "be kind"
    assert told["data"]["sha256"] != plain["data"]["sha256"]


def test_ctrl_c_says_how_to_go_on(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vflowopt_search.evaluate.answers._answer", interrupted)
    result = run(*command(world, tmp_path))
    assert result.exit_code == 130
    assert "interrupted; all answers are kept. Go on with:\n" in result.stderr
    assert result.stdout == ""


def no_answers(folder: Path) -> Arguments:
    (folder / "bare.jsonl").write_text('{"image": "0.png", "question": "how many"}\n')
    return ["--data", folder / "bare.jsonl", "--by", "question"]


def empty(folder: Path) -> Arguments:
    (folder / "empty.jsonl").write_text("")
    return ["--data", folder / "empty.jsonl"]


def other_model(folder: Path) -> Arguments:
    strategy = Strategy.load(QUICKSTART)
    strategy.save(folder / "other.json")
    return [folder / "other.json"]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (no_answers, "no sample has an answer to compare with; name the column that holds the"),
        (empty, "empty.jsonl is empty; give a data set with at least one row"),
        (other_model, "is for a model with model_type 'llava_onevision' but this model has 'lla"),
        (["--data", "none.jsonl"], "none.jsonl does not exist"),
        (["--by", "sort"], "there is no column 'sort' for the group; the columns are id, image"),
        (
            ["--metric", "multiple_choice", "--columns", "answer=kind"],
            " is none of its options ['red', 'blue']; name the columns with --columns answer=...",
        ),
        (
            ["baseline:random:x"],
            "no baseline is called 'random:x'; use one of baseline:random, baseline:random:SEED, "
            "baseline:random:1-4, baseline:uniform, ",
        ),
        (
            ["baseline:random:4-1"],
            "baseline:random:4-1 is no range of 1 to 100 draws; give the low",
        ),
        (["baseline:random:1-101"], "baseline:random:1-101 is no range of 1 to 100 draws"),
        (["baseline:best"], "no baseline is called 'best'; use one of baseline:random, baseline:"),
        (["none.json"], "none.json cannot be read (No such file or directory); check the path"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    world: World, tmp_path: Path, more: Any, sentence: str
) -> None:
    typed = more(world.samples.parent) if callable(more) else more
    result = run(*command(world, tmp_path / "out"), *typed)
    assert result.exit_code == 1
    assert sentence in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (["baseline:random"], "no strategy names a model"),
        (["baseline:random", "--model", "somewhere"], "needs labelled samples"),
        (["baseline:random", "--model", "testbed", "--metric", "bleu"], "'bleu' is not one of"),
    ],
)
def test_what_is_missing_is_asked_for(tmp_path: Path, typed: list[str], sentence: str) -> None:
    result = run("evaluate", *typed, "--output", tmp_path)
    assert result.exit_code == 2
    assert sentence in " ".join(result.stderr.replace("│", " ").split())


def test_plain_strategies_alone_need_a_budget_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*args: Any) -> None:
        raise AssertionError("minutes may go by here")

    monkeypatch.setattr("vflowopt_search.cli.evaluate.load", loaded)
    typed: Arguments = ["baseline:random", "--model", "testbed", "--questions", "4"]
    result = run("evaluate", *typed, "--output", tmp_path)
    assert result.exit_code == 2
    assert "--retain" in result.stderr


@pytest.mark.parametrize("nothing", [None, "", " "])
def test_questions_without_an_answer_are_left_out_and_named(
    nothing: str | None, world: World, tmp_path: Path
) -> None:
    lines = world.samples.with_name("labelled.jsonl").read_text().splitlines()
    rows = [json.loads(line) | {"answer": "red"} for line in lines]
    rows[3]["answer"] = nothing
    data = world.samples.with_name("gaps.jsonl")
    data.write_text("\n".join(map(json.dumps, rows)) + "\n")
    typed: Arguments = ["--data", data, "--columns", "answer=answer"]
    told = json.loads(run(*command(world, tmp_path, *typed), "--json").stdout)
    assert (told["samples"], told["data"]["skipped"]) == (11, 1)
    left_out = "1 sample that cannot be used skipped: q3 (the first: it has no answer to compare"
    assert left_out in told["data"]["note"]
    strictly = run(*command(world, tmp_path, *typed), "--strict")
    assert strictly.exit_code == 1
    assert "sample q3 of " in strictly.stderr and "strict is to stop" in strictly.stderr
    for row in rows[:4]:
        row["answer"] = nothing
    data.write_text("\n".join(map(json.dumps, rows)) + "\n")
    result = run(*command(world, tmp_path, *typed))
    assert result.exit_code == 1 and "4 of 12 samples cannot be used" in result.stderr


def test_the_shipped_model_and_questions_need_no_naming(tmp_path: Path) -> None:
    found = tmp_path / "found"
    found.mkdir()
    Strategy.load(QUICKSTART).save(found / run_folder.STRATEGY)
    typed: Arguments = [found, "baseline:uniform", "--questions", "48", "--by", "type"]
    told = json.loads(run("evaluate", *typed, "--json").stdout)
    assert (told["model"]["name"], told["data"]["name"]) == ("testbed", "testbed")
    assert told["unpruned"] > 0.8
    quickstart, uniform = told["strategies"]
    assert quickstart["accuracy"] > uniform["accuracy"]
    assert quickstart["kept"]["low"] <= quickstart["kept"]["value"] <= quickstart["kept"]["high"]
    assert quickstart["speed"] > 1
    assert json.loads((found / run_folder.EVALUATION).read_text())["metric"] == "exact_match"


def test_a_data_set_on_disk_with_several_annotators(world: World, tmp_path: Path) -> None:
    image = {"bytes": world.image.read_bytes()}
    annotated = [{"answer": "red", "answer_id": n} for n in range(10)]
    rows = [{"image": image, "question": "how many", "answers": annotated} for _ in range(3)]
    Dataset.from_list(rows).save_to_disk(str(tmp_path / "data"))
    typed: Arguments = ["--data", tmp_path / "data", "--metric", "vqa_accuracy", "--by", "question"]
    told = json.loads(run(*command(world, tmp_path / "out"), *typed, "--json").stdout)
    assert (told["samples"], told["images"]) == (3, 1)


def test_every_metric_has_a_name_on_the_command_line() -> None:
    assert [name.value for name in ScoreName] == list(METRICS)
    assert {name.value for name in MetricName} == {*DIVERGENCES, *ANSWER_METRICS}
