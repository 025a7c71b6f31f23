"""`validate` end to end: on a small study of the shipped model, and on a model of one's own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.command import World, make_world, run
from vflowopt_search import run_folder
from vflowopt_search.checkout import commit
from vflowopt_search.cli.job import DataOptions
from vflowopt_search.cli.labelled import LabelledData
from vflowopt_search.cli.validation_inputs import ValidationJob, samples_apart
from vflowopt_search.model_source import ModelSource
from vflowopt_search.resources import studies_folder

Arguments = list[str | Path]
METRICS = {
    "last_token_cosine",
    "flow",
    "kl",
    "total_variation",
    "answer_cosine",
    "answer_kl",
    "answer_total_variation",
}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the table of the quickstart's trials, and no study."""
    folder = tmp_path_factory.mktemp("study")
    shutil.copy(studies_folder() / "quickstart" / run_folder.TRIALS, folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VFLOWOPT_SEARCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def command(study: Path, *more: str | Path) -> Arguments:
    sizes: Arguments = ["--strategies", "9", "--samples", "20", "--questions", "24"]
    return ["validate", study, *sizes, *more]


def test_a_study_of_the_shipped_model(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(*command(study, "--output", tmp_path))
    assert result.exit_code == 0, result.stderr
    assert "9 strategies (3 along the study's divergences, 3 of its trials at" in result.stdout
    assert set(result.stdout.split()) >= METRICS
    stored = json.loads((tmp_path / run_folder.VALIDATION).read_text())
    assert stored["format"] == "vflowopt-validation/1"
    assert len(stored["points"]) == 9
    assert {row["samples"] for row in stored["predictions"]} == {16, 20}
    assert {row["metric"] for row in stored["predictions"]} == METRICS
    for point in stored["points"]:
        assert set(point["divergence"]) == METRICS
        assert min(point["divergence"].values()) > 0
        assert 0 <= point["accuracy"] <= 1

    def measured_again(*args: Any) -> None:
        raise AssertionError("nothing is missing")

    monkeypatch.setattr("vflowopt_search.evaluate.validation.every_divergence", measured_again)
    monkeypatch.setattr("vflowopt_search.evaluate.answers._answer", measured_again)
    again = json.loads(run(*command(study, "--output", tmp_path, "--json")).stdout)
    assert again | {"seconds_of_last_run": 0} == stored | {"seconds_of_last_run": 0}
    assert not (tmp_path / "validation-1.json").exists()  # it says the same
    assert stored["model"]["device"] == "cpu" and stored["versions"].get("commit") == commit()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A checkpoint, and twelve labelled questions about six images."""
    made = make_world(tmp_path_factory.mktemp("world"))
    rows = [
        {"image": f"{n % 6}.png", "question": f"how many objects is {n} ?", "answer": "red"}
        for n in range(12)
    ]
    made.samples.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return made


@pytest.fixture(scope="module")
def searched(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "mine"
    result = run(*world.search(output, "--trials", "3"))
    assert result.exit_code == 0, result.stderr
    return output


def own(world: World, searched: Path, *more: str | Path) -> Arguments:
    sizes: Arguments = ["--strategies", "8", "--samples", "4", "--questions", "6"]
    data: Arguments = ["--data", world.samples, "--max-new-tokens", "2"]
    return ["validate", searched, *sizes, *data, *more]


def test_data_of_ones_own_is_split_by_image(world: World, searched: Path) -> None:
    told = json.loads(run(*own(world, searched, "--json")).stdout)
    assert (told["calibration_samples"], told["questions"]) == (4, 6)
    assert {point["origin"] for point in told["points"]} == {"along", "random", "fresh"}
    assert (searched / run_folder.VALIDATION).is_file()
    other = run(*own(world, searched, "--seed", "2", "--json"))
    assert f"it is kept as {searched / 'validation-1.json'}" in other.stderr
    assert json.loads((searched / "validation-1.json").read_text())["seed"] == told["seed"] == 1
    # the random model is never right: nothing can be predicted, and no figure stands for that
    assert told["unpruned"] == 0
    assert all(point["kept"] is None for point in told["points"])
    assert told["predictions"] == []
    first, second, *rest = run(*own(world, searched)).stdout.splitlines()
    assert first.endswith("questions about other images, exact_match: unpruned 0.0%")
    assert second.startswith("caution: the unpruned model got every answer wrong")
    assert not any("%" in line or "divergence" in line for line in rest)


def test_what_the_data_has_is_compared_with_what_was_asked_of_each_part(
    world: World, searched: Path
) -> None:
    """It is read once, for both parts, and then split by image."""
    parts = json.loads(run(*own(world, searched, "--samples", "2", "--json")).stdout)
    assert parts["questions"] == 6  # 8 of the 12 rows were enough
    assert parts["calibration"]["note"] == parts["data"]["note"] == ""
    more = run(*own(world, searched, "--questions", "10"))
    assert "questions: 8 instead of 10 samples: the data has no more" in more.stdout.splitlines()
    assert "calibration samples: " not in more.stdout


def test_calibration_samples_of_their_own(world: World, searched: Path, tmp_path: Path) -> None:
    lines = world.samples.read_text().splitlines()
    few = world.samples.with_name("few.jsonl")
    few.write_text("\n".join(lines[:3]) + "\n")
    typed: Arguments = ["--calibration", few, "--questions", "12", "--output", tmp_path, "--json"]
    told = json.loads(run(*own(world, searched, *typed)).stdout)
    assert (told["calibration_samples"], told["questions"]) == (3, 6)  # the others show them


def job_on(data: Path, calibration: Path, options: DataOptions, model: Path, run: Path) -> Any:
    """A validation of which only the samples matter."""
    return ValidationJob(
        run=run,
        source=ModelSource(str(model)),
        data=LabelledData(str(data), options),
        calibration=str(calibration),
        strategies=8,
        samples=4,
        questions=4,
        space="vflowopt",
        metric="exact_match",
        output=run,
        max_new_tokens=2,
        batch_size=None,
        cache=None,
        self_check=False,
    )


def test_calibration_samples_are_read_as_the_questions_are(world: World, tmp_path: Path) -> None:
    """Unusual columns and chats are named once; a column that is absent there is guessed."""
    chat = [
        {"from": "human", "value": "<image>\nwhat is it"},
        {"from": "gpt", "value": "red"},
        {"from": "human", "value": "how many"},
        {"from": "gpt", "value": "two"},
    ]
    names = [("scan", "gold"), ("scan", "nobody")]
    files = []
    for number, (image, answer) in enumerate(names):
        rows = [
            {
                image: str(world.image.with_name(f"{4 * number + n}.png")),
                "talk": chat,
                answer: "two",
            }
            for n in range(4)
        ]
        files.append(tmp_path / f"{number}.jsonl")
        files[-1].write_text("\n".join(map(json.dumps, rows)) + "\n")
    columns = {"image": "scan", "prompt": "talk", "answer": "gold"}
    options = DataOptions(columns=columns, turns="all")
    job = job_on(files[0], files[1], options, world.model, tmp_path)
    calibration, questions = samples_apart(job)
    assert {one.prompt for one in (*calibration.samples, *questions.samples)} == {"how many"}
    assert all(len(one.turns) == 3 for one in calibration.samples)
    asked = replace(job, data=replace(job.data, options=DataOptions(columns=columns, prompt="who")))
    calibration, _ = samples_apart(asked)
    assert {one.prompt for one in calibration.samples} == {"who"}


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--samples", "12"], "has no sample left to ask about other images than those of the 12"),
        (["--data", "none.jsonl"], "none.jsonl does not exist"),
        (["--space", "vflowpot"], "'vflowpot' is neither a shipped name"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    world: World, searched: Path, more: list[str], sentence: str
) -> None:
    result = run(*own(world, searched, *more))
    assert result.exit_code == 1
    assert sentence in result.stderr.splitlines()[-1]
    assert result.stdout == ""


def test_a_folder_without_trials_is_refused(tmp_path: Path) -> None:
    result = run("validate", tmp_path)
    assert result.exit_code == 1
    assert "has neither study.journal nor trials.parquet; give the output" in result.stderr
