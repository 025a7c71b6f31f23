"""An evaluation says how many of its samples show images that the strategy was searched on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.command import World, make_world, run
from vflowopt_search import run_folder
from vflowopt_search.calibration.seen_images import SeenImages, fingerprints
from vflowopt_search.cli.candidates import Candidates, read_candidates
from vflowopt_search.cli.evaluation_table import caution
from vflowopt_search.cli.job import DataOptions, Job
from vflowopt_search.cli.preparation import chosen_samples, held_out_questions
from vflowopt_search.cli.validation_inputs import seen_by_search
from vflowopt_search.model_source import ModelSource
from vflowopt_search.recipe import StudyRecipe

SEEN, FRESH = 4, 3
CAUTION = (
    "4 of these 7 samples show images that strategy mine was searched on: its accuracy there may "
    "flatter it"
)
Arguments = list[str | Path]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A checkpoint, its samples, and questions of which some are about their images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VFLOWOPT_SEARCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        made = make_world(tmp_path_factory.mktemp("world"))
        noise = np.random.default_rng(1).integers(0, 256, (FRESH, 40, 40, 3), dtype=np.uint8)
        for number, pixels in enumerate(noise):
            Image.fromarray(pixels).save(made.samples.with_name(f"fresh-{number}.png"))
        images = [f"{n}.png" for n in range(SEEN)] + [f"fresh-{n}.png" for n in range(FRESH)]
        rows = [{"image": image, "question": "how many ?", "answer": "red"} for image in images]
        text = "\n".join(map(json.dumps, rows)) + "\n"
        made.samples.with_name("labelled.jsonl").write_text(text)
        yield made


@pytest.fixture(scope="module")
def searched(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "mine"
    result = run(*world.search(output, "--trials", "1", "--no-held-out", "--samples", "10"))
    assert result.exit_code == 0, result.stderr
    return output


def evaluated(world: World, output: Path, *named: str | Path) -> Arguments:
    data: Arguments = ["--data", world.samples.with_name("labelled.jsonl")]
    quick: Arguments = ["--max-new-tokens", "1", "--no-self-check", "--output", output]
    return ["evaluate", *named, *data, *quick]


def test_samples_about_images_of_the_search_are_counted(
    world: World, searched: Path, tmp_path: Path
) -> None:
    result = run(*evaluated(world, tmp_path, searched, "baseline:random"))
    assert result.exit_code == 0, result.stderr
    assert CAUTION in result.stdout.splitlines()
    told = json.loads((tmp_path / run_folder.EVALUATION).read_text())["data"]
    assert told["searched_on"] == {"mine": SEEN}
    assert told["caution"] == CAUTION


def test_a_validation_counts_its_questions_about_images_of_the_search(
    world: World, searched: Path, tmp_path: Path
) -> None:
    few = world.samples.with_name("calibration.jsonl")
    few.write_text(
        "".join(
            json.dumps({"image": f"fresh-{n}.png", "question": "how many ?"}) + "\n"
            for n in range(2)
        )
    )
    sizes: Arguments = ["--strategies", "8", "--calibration", few, "--max-new-tokens", "1"]
    data: Arguments = ["--data", world.samples.with_name("labelled.jsonl"), "--no-self-check"]
    result = run("validate", searched, *sizes, *data, "--output", tmp_path)
    assert result.exit_code == 0, result.stderr
    told = json.loads((tmp_path / run_folder.VALIDATION).read_text())["data"]
    assert (told["samples"], told["searched_on"]) == (SEEN + FRESH - 2, SEEN)
    assert told["caution"].startswith("4 of these 5 questions show images that the search saw: ")
    assert told["caution"] in result.stdout.splitlines()
    assert seen_by_search(searched, []) == {"searched_on": 0, "caution": ""}
    assert seen_by_search(tmp_path, []) == {"searched_on": None, "caution": ""}


def test_what_was_found_is_written_before_what_was_seen(world: World, tmp_path: Path) -> None:
    output = tmp_path / "mine"
    (output / run_folder.SEEN_IMAGES).mkdir(parents=True)  # where no file can be written
    result = run(*world.search(output, "--trials", "1", "--no-held-out", "--no-self-check"))
    assert result.exit_code == 1 and run_folder.SEEN_IMAGES in result.stderr.splitlines()[-1]
    assert (output / run_folder.STRATEGY).is_file() and (output / run_folder.TRIALS).is_file()


def test_where_nothing_is_known_nothing_is_said(
    world: World, searched: Path, tmp_path: Path
) -> None:
    alone = shutil.copy(searched / run_folder.STRATEGY, tmp_path / "alone.json")
    result = run(*evaluated(world, tmp_path, alone))
    assert result.exit_code == 0, result.stderr
    assert "searched on" not in result.stdout
    told = json.loads((tmp_path / run_folder.EVALUATION).read_text())["data"]
    assert (told["searched_on"], told["caution"]) == ({}, "")


def test_images_of_another_search_are_not_taken_for_its_own(searched: Path, tmp_path: Path) -> None:
    shutil.copy(searched / run_folder.STRATEGY, tmp_path)
    shutil.copy(searched / run_folder.SEEN_IMAGES, tmp_path)
    assert read_candidates([str(tmp_path)]).seen.keys() == {"mine"}
    assert read_candidates([str(tmp_path / run_folder.STRATEGY)]).seen.keys() == {"mine"}
    other = SeenImages.load(tmp_path / run_folder.SEEN_IMAGES)
    other = other.model_copy(update={"calibration_sha256": "00" * 32})
    other.save(tmp_path / run_folder.SEEN_IMAGES)
    assert read_candidates([str(tmp_path)]).seen == {}


def test_every_strategy_is_said_to_have_seen_its_own_under_the_name_it_has(searched: Path) -> None:
    shown = read_candidates([str(searched), str(searched), "baseline:random"])
    assert shown.searched_on([]) == {"mine": 0, "mine (2)": 0}
    assert caution({"mine": 0, "mine (2)": 0}, 5) == ""
    told = caution({"one": 1, "two": 0, "three": 5}, 5)
    assert told.startswith("1 of these 5 samples shows images that strategy one was searched on: ")
    assert "; 5 of these 5 samples show images that strategy three was" in told and "two" not in (
        told
    )


def test_no_two_strategies_get_one_name(searched: Path) -> None:
    alone = read_candidates([str(searched)])
    files = dict.fromkeys(["random", "random (2)"], alone.files["mine"])
    seen = dict.fromkeys(files, alone.seen["mine"])
    shown = Candidates(files, ("random",), None, seen)
    assert shown.searched_on([]) == {"random (2)": 0, "random (2) (2)": 0}


def test_the_bundled_questions_are_about_other_images_than_the_quickstart() -> None:
    recipe = StudyRecipe.load("quickstart")
    samples = chosen_samples(Job(recipe, ModelSource(), DataOptions(), Path("nowhere")))
    seen = SeenImages.of(samples)
    assert len(seen.images) == recipe.samples
    assert seen.count([*map(fingerprints, samples.samples)]) == len(samples)
    assert seen.count([*map(fingerprints, held_out_questions())]) == 0
