"""What was typed becomes a job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from PIL import Image

from tests.command import run
from vflowopt_search.cli.command_line import command_of
from vflowopt_search.cli.job import DataOptions, Job, parse_columns, resolve_output, resolve_recipe
from vflowopt_search.cli.job import DataOptions as Data
from vflowopt_search.cli.options import Sampler
from vflowopt_search.cli.preparation import chosen_samples
from vflowopt_search.errors import CalibrationError, SearchSpaceError
from vflowopt_search.model_source import ModelSource
from vflowopt_search.recipe import StudyRecipe
from vflowopt_search.sampling import SamplerName

NOTHING: dict[str, Any] = {"model": None, "trials": None}


def test_nothing_typed_is_the_quickstart() -> None:
    assert resolve_recipe(None, NOTHING) == StudyRecipe.load("quickstart")


def test_what_is_typed_wins_over_the_recipe() -> None:
    changed = resolve_recipe("quickstart", {"model": "some/model", "trials": 7})
    quickstart = StudyRecipe.load("quickstart")
    assert changed == quickstart.model_copy(update={"model": "some/model", "trials": 7})


def test_a_model_alone_needs_samples() -> None:
    with pytest.raises(typer.BadParameter, match="needs samples"):
        resolve_recipe(None, {"model": "some/model"})


def test_a_model_with_samples_gets_the_defaults() -> None:
    recipe = resolve_recipe(None, {"model": "some/model", "calibration": "data.jsonl"})
    assert (recipe.space, recipe.retain, recipe.trials) == ("vflowopt", 0.10, 100)
    assert (recipe.samples, recipe.seed, recipe.metric) == (256, 0, "last_token_cosine")


def test_the_shipped_model_brings_its_samples() -> None:
    assert resolve_recipe(None, {"model": "testbed", "trials": 3}).calibration == "testbed"


def test_a_value_out_of_range_is_refused() -> None:
    with pytest.raises(SearchSpaceError, match=r"`retain` is 2\.0 but"):
        resolve_recipe(None, {"retain": 2.0})


@pytest.mark.parametrize(
    ("output", "study", "model", "expected"),
    [
        ("here", "quickstart", "m", "here"),
        (None, None, None, "runs/quickstart"),
        (None, None, "llava-hf/llava-1.5-7b-hf", "runs/llava-1.5-7b-hf"),
        (None, "recipes/mine.yaml", "m", "runs/mine"),
    ],
)
def test_output(output: str | None, study: str | None, model: str | None, expected: str) -> None:
    asked = None if output is None else Path(output)
    assert resolve_output(asked, study, model) == Path(expected)


def test_output_of_a_folder_is_called_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_output(None, None, ".") == Path("runs") / tmp_path.name


def test_study_is_called_after_the_folder_and_lives_in_it(tmp_path: Path) -> None:
    recipe = StudyRecipe.load("quickstart")
    job = Job(recipe, ModelSource(), Data(), tmp_path / "mine")
    assert job.study_name == "mine"
    assert job.storage_or_journal == tmp_path / "mine" / "study.journal"
    elsewhere = Job(recipe, ModelSource(), Data(), tmp_path, storage="sqlite:///s.db")
    assert elsewhere.storage_or_journal == "sqlite:///s.db"


def test_columns() -> None:
    assert parse_columns(None) == {}
    assert parse_columns("image=picture, prompt=a=b") == {"image": "picture", "prompt": "a=b"}
    assert parse_columns("image=a", "clip") == {"image": "a", "video": "clip"}


@pytest.mark.parametrize("text", ["image", "picture=image", "image=", "image=a,,prompt=b"])
def test_wrong_columns_are_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="is not FIELD=COLUMN"):
        parse_columns(text)


def test_flags_of_the_data_reach_the_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        Image.new("RGB", (8, 6)).save(tmp_path / f"{number}.png")
    said = [("human", "<video> what?"), ("gpt", "this"), ("human", "and then?")]
    row = {
        "clip": [f"{number}.png" for number in range(5)],
        "conversations": [{"from": who, "value": words} for who, words in said],
    }
    (tmp_path / "data.json").write_text(json.dumps([row]))
    jobs: list[Job] = []
    monkeypatch.setattr("vflowopt_search.cli.run.run", lambda job, as_json: jobs.append(job))
    data = ["--calibration", str(tmp_path / "data.json"), "--video-column", "clip"]
    run("search", "some/model", *data, "--turns", "all", "--frames", "2")
    (sample,) = chosen_samples(jobs[0]).samples
    assert [len(video.frames) for video in sample.videos] == [2]
    assert [turn.role for turn in sample.turns] == ["user", "assistant", "user"]
    run("search", "some/model", *data, "--fps", "2")
    with pytest.raises(CalibrationError, match="does not say how fast it plays"):
        chosen_samples(jobs[1])


def test_being_strict_says_nothing_of_the_data() -> None:
    assert DataOptions(strict=True).typed == []
    DataOptions(strict=True).refuse_for_shipped("the calibration samples", "--calibration")
    assert DataOptions(strict=True, prompt="what ?").typed == ["--prompt"]


def test_the_sampler_reaches_the_study_and_the_kept_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[Job] = []
    monkeypatch.setattr("vflowopt_search.cli.run.run", lambda job, as_json: jobs.append(job))
    for typed in ([], ["--sampler", "gp"], ["--sampler", "tpe-multivariate"]):
        run("search", "--output", tmp_path, *typed)
    assert [job.sampler for job in jobs] == ["tpe", "gp", "tpe-multivariate"]
    assert ["--sampler" in command_of(job) for job in jobs] == [False, True, True]
    assert "--sampler tpe-multivariate" in command_of(jobs[2])
    assert {name.value for name in Sampler} == set(get_args(SamplerName))
    assert run("search", "--sampler", "best").exit_code == 2
