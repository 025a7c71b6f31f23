"""Rows that cannot be used are left out, counted and named; the rest is measured as if alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import LlavaProcessor

from tests.command import World, make_world, run
from vflowopt_search import run_folder
from vflowopt_search.calibration.choice import load_calibration, order
from vflowopt_search.calibration.rows import Columns
from vflowopt_search.calibration.samples import CalibrationSet, fingerprint
from vflowopt_search.errors import CalibrationError
from vflowopt_search.strategy import Importance, Stage, Strategy

Arguments = list[str | Path]
THIN, TRUNCATED, BROKEN = "q3", "q5", '{"id": "q6", "ima'


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Fifteen rows of eight images: one thin, one truncated, one line that is no JSON."""
    inner = LlavaProcessor.__call__

    def refuse_thin(self: Any, images: Any = None, **options: Any) -> Any:
        """The rule of Qwen2-VL's image processor."""
        for image in (image for row in images or [] for image in row):
            if max(image.size) / min(image.size) > 200:
                raise ValueError("absolute aspect ratio must be smaller than 200, got 2000.0")
        return inner(self, images=images, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VFLOWOPT_SEARCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(LlavaProcessor, "__call__", refuse_thin)
        made = make_world(tmp_path_factory.mktemp("world"))
        folder = made.samples.parent
        Image.new("RGB", (1, 2000), "red").save(folder / "thin.png")
        Image.effect_noise((64, 64), 50).save(folder / "whole.jpg")
        (folder / "cut.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:400])
        pictures = {THIN: "thin.png", TRUNCATED: "cut.jpg"}
        rows = [
            {
                "id": f"q{n}",
                "image": pictures.get(f"q{n}", f"{n % 8}.png"),
                "question": f"how many objects is {n} ?",
                "answer": "red",
            }
            for n in range(15)
        ]
        lines = [BROKEN if row["id"] == "q6" else json.dumps(row) for row in rows]
        made.samples.write_text("\n".join(lines) + "\n")
        stages = (Stage(layer=0, keep_ratio=0.6), Stage(layer=3, keep_ratio=0.5))
        mine = Strategy(name="mine", importance=Importance(vision_layer=1), stages=stages)
        mine.save(made.model.with_name("mine.json"))
        yield made


def usable(world: World, seed: int = 0) -> CalibrationSet:
    """What can be read and is not thin, in the order of the choice."""
    chosen = load_calibration(world.samples, columns=Columns(prompt="question"), seed=seed)
    left = tuple(sample for sample in chosen.samples if sample.id != THIN)
    return replace(chosen, samples=left, sha256=fingerprint(left))


def evaluation(world: World, output: Path, *more: str | Path) -> Arguments:
    named: Arguments = ["evaluate", world.model.with_name("mine.json"), "--model", world.model]
    data: Arguments = ["--data", world.samples, "--max-new-tokens", "3", "--no-self-check"]
    return [*named, *data, "--output", output, *more]


def test_evaluate_asks_the_others_and_says_so(world: World, tmp_path: Path) -> None:
    result = run(*evaluation(world, tmp_path))
    assert result.exit_code == 0, result.stderr
    assert "12 samples about 8 images" in result.stdout
    note = next(line for line in result.stdout.splitlines() if "cannot be used" in line)
    assert "2 rows that cannot be read skipped: " in note
    assert "1 sample that cannot be used skipped: q3 (the first: LlavaProcessor refuses" in note
    stored = json.loads((tmp_path / run_folder.EVALUATION).read_text())
    assert (stored["samples"], stored["refused"]) == (12, [THIN])
    assert (stored["data"]["samples"], stored["data"]["skipped"]) == (12, 3)
    assert stored["data"]["sha256"] == usable(world).sha256
    assert stored["data"]["note"] == note
    # the unpruned model and the strategy were asked the very same questions
    lines = [json.loads(line) for line in (tmp_path / run_folder.ANSWERS).read_text().splitlines()]
    asked: dict[str, list[str]] = {}
    for line in lines:
        if "under" in line:
            asked.setdefault(line["under"], []).append(line["item"])
    whole, pruned = asked.values()
    assert whole == pruned
    assert len(whole) == 12


def test_an_interrupted_evaluation_goes_on_to_the_same_end(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vflowopt_search.evaluate import answers

    whole = json.loads(run(*evaluation(world, tmp_path / "whole", "--json")).stdout)
    answer, left = answers._answer, 6

    def interrupted(*given: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return answer(*given)

    more: Arguments = ["--json", "--batch-size", "1"]
    with monkeypatch.context() as patch:
        patch.setattr(answers, "_answer", interrupted)
        assert run(*evaluation(world, tmp_path / "cut", *more)).exit_code == 130
    resumed = json.loads(run(*evaluation(world, tmp_path / "cut", *more)).stdout)
    with monkeypatch.context() as patch:
        patch.setattr(answers, "_answer", None)  # nobody is asked a third time
        again = json.loads(run(*evaluation(world, tmp_path / "cut", *more)).stdout)
    for each in (whole, resumed, again):
        each["seconds"] = each["strategies"][0]["speed"] = 0
    assert again == resumed == whole


@pytest.mark.parametrize("command", ["evaluate", "search"])
def test_strict_stops_at_the_first(world: World, tmp_path: Path, command: str) -> None:
    made: dict[str, Arguments] = {
        "evaluate": evaluation(world, tmp_path / "out", "--strict"),
        "search": world.search(tmp_path / "out", "--strict", "--samples", "15"),
    }
    result = run(*made[command])
    assert result.exit_code == 1
    assert "cannot be used, and strict is to stop at the first: " in result.stderr
    # what can be read, but is refused
    whole = world.samples.with_name("readable.jsonl")
    rows = [line for line in world.samples.read_text().splitlines() if line != BROKEN]
    whole.write_text("\n".join(row for row in rows if TRUNCATED not in row) + "\n")
    told = [whole if part == world.samples else part for part in made[command]]
    result = run(*told)
    assert result.exit_code == 1
    assert "LlavaProcessor refuses sample q3" in result.stderr


def test_too_many_end_the_run_with_one_sentence(world: World, tmp_path: Path) -> None:
    data = world.samples.with_name("thin.jsonl")
    rows = [
        {"id": f"t{n}", "image": "thin.png" if n % 4 == 0 else "0.png", "question": "?"}
        for n in range(8)
    ]
    data.write_text("\n".join(json.dumps(row | {"answer": "red"}) for row in rows) + "\n")
    sentence = "2 of 8 samples cannot be used, more than 20%; fix the data set"
    for command in (
        evaluation(world, tmp_path / "evaluation"),
        world.search(tmp_path / "run", "--samples", "8"),
    ):
        told = [data if part == world.samples else part for part in command]
        result = run(*told)
        assert result.exit_code == 1
        assert sentence in result.stderr
        assert "Traceback" not in result.stderr


def test_a_search_is_of_the_others_and_goes_on_with_them(world: World, tmp_path: Path) -> None:
    command = world.search(tmp_path / "run", "--samples", "15", "--trials", "2", "--no-held-out")
    result = run(*command)
    assert result.exit_code == 0, result.stderr
    assert "note: 2 rows that cannot be read skipped: " in result.stderr
    assert "1 sample that cannot be used skipped: q3 (the first: " in result.stderr
    origin = Strategy.load(tmp_path / "run" / run_folder.STRATEGY).provenance
    assert origin is not None
    assert origin.calibration is not None
    assert (origin.calibration.samples, origin.calibration.sha256) == (12, usable(world).sha256)
    summary = json.loads((tmp_path / "run" / run_folder.SUMMARY).read_text())
    assert (summary["calibration"]["samples"], summary["calibration"]["skipped"]) == (12, 3)
    assert "q3" in summary["calibration"]["note"]
    again = run(*command[:-1], "--trials", "3")
    assert again.exit_code == 0, again.stderr
    assert "3 of 3 trials" in again.stdout


def test_validate_leaves_them_out_of_both_halves(world: World, tmp_path: Path) -> None:
    searched = run(*world.search(tmp_path / "run", "--trials", "3", "--no-held-out"))
    assert searched.exit_code == 0, searched.stderr
    sizes: Arguments = ["--strategies", "8", "--samples", "15", "--questions", "15"]
    data: Arguments = ["--data", world.samples, "--calibration", "testbed", "--no-self-check"]
    more: Arguments = ["--max-new-tokens", "2"]
    result = run("validate", tmp_path / "run", *sizes, *data, *more)
    assert result.exit_code == 0, result.stderr
    assert "1 sample that cannot be used skipped: q3" in result.stdout
    told = json.loads((tmp_path / "run" / run_folder.VALIDATION).read_text())
    assert (told["questions"], told["refused"]) == (12, [THIN])
    assert (told["data"]["samples"], told["data"]["skipped"]) == (12, 3)


def short_search(world: World, output: Path, *more: str | Path) -> Arguments:
    named: Arguments = ["search", world.model, "--calibration", world.samples]
    few: Arguments = ["--columns", "prompt=question", "--trials", "2", "--metric", "flow"]
    return [*named, *few, "--no-self-check", "--output", output, *more]


def test_overlays_of_the_samples_that_are_left_can_be_recorded_later(
    world: World, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    words = short_search(world, folder, "--samples", "13", "--seed", "1")
    assert run(*words).exit_code == 0
    summary = json.loads((folder / run_folder.SUMMARY).read_text())
    assert summary["calibration"]["samples"] == 12
    shutil.rmtree(folder / run_folder.OVERLAYS)
    data: Arguments = ["--calibration", world.samples, "--columns", "prompt=question"]
    again = run("report", folder, "--model", world.model, *data)
    assert again.exit_code == 0, again.stderr
    assert any((folder / run_folder.OVERLAYS).iterdir())


def test_what_was_refused_in_the_search_half_is_not_held_out(world: World, tmp_path: Path) -> None:
    def chosen(seed: int) -> set[str]:
        samples = load_calibration(world.samples, num_samples=HALF, seed=seed).samples
        return {sample.id for sample in samples}

    seed = next(seed for seed in range(9) if THIN in chosen(seed))
    words = short_search(world, tmp_path / "run", "--samples", str(HALF), "--seed", str(seed))
    result = run(*words)
    assert result.exit_code == 0, result.stderr
    told = [line for line in result.stderr.splitlines() if "1 sample that cannot be used" in line]
    assert len(told) == 1  # of the search half, before the trials; of no other
    origin = Strategy.load(tmp_path / "run" / run_folder.STRATEGY).provenance
    assert origin is not None and origin.calibration is not None
    assert origin.calibration.samples == HALF - 1 and origin.calibration.held_out


HALF = 6
HELD_OUT_FAULTS = [
    ("cut.jpg", "3 rows of {data} cannot be read (", "cannot be used, and strict is to stop"),
    ("thin.png", "3 of 6 samples cannot be used, more than 20%", "LlavaProcessor refuses sample"),
]


def broken_behind(world: World, picture: str) -> Path:
    """Twelve rows; three of the six that a search of six does not see show `picture`."""
    broken = order(2 * HALF, seed=0)[HALF : HALF + 3]
    # no image of one half is in the other
    shown = [picture if n in broken else f"own-{n}.png" for n in range(2 * HALF)]
    for n, one in enumerate(shown):
        if one != picture:
            Image.effect_noise((40, 40), 10 + n).save(world.samples.with_name(one))
    data = world.samples.with_name(f"behind-{picture}.jsonl")
    rows = [{"image": one, "question": f"how many is {n} ?"} for n, one in enumerate(shown)]
    data.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return data


@pytest.mark.parametrize(("picture", "why", "strictly"), HELD_OUT_FAULTS)
def test_held_out_samples_that_cannot_be_used_end_no_search(
    world: World, tmp_path: Path, picture: str, why: str, strictly: str
) -> None:
    data = broken_behind(world, picture)
    words = short_search(world, tmp_path / "run", "--samples", str(HALF))
    words = [data if word == world.samples else word for word in words]
    for _ in range(2):  # the same command again ends as well
        result = run(*words)
        assert result.exit_code == 0, result.stderr
        note = "note: the strategy found was not measured on held-out samples: "
        assert note + why.format(data=data) in result.stderr
        (tmp_path / "run" / run_folder.REPORT).unlink()
    summary = json.loads((tmp_path / "run" / run_folder.SUMMARY).read_text())
    assert summary["complete"] and "held_out" not in summary["wanted"]
    other = [tmp_path / "strict" if word == tmp_path / "run" else word for word in words]
    result = run(*other, "--strict")
    assert result.exit_code == 1
    assert strictly in result.stderr
    assert not (tmp_path / "strict" / run_folder.JOURNAL).exists()  # no trial was run


def readable(world: World, count: int, skip: int = 0) -> bool:
    """Whether so many rows can be read, one after the other."""
    columns = Columns(prompt="question")
    try:
        load_calibration(world.samples, columns=columns, num_samples=count, skip=skip, strict=True)
    except CalibrationError:
        return False
    return True


def test_strict_reads_the_held_out_rows_before_any_trial(world: World, tmp_path: Path) -> None:
    count = next(n for n in range(1, 8) if readable(world, n) and not readable(world, n, n))
    result = run(*short_search(world, tmp_path / "run", "--samples", str(count), "--strict"))
    assert result.exit_code == 1, result.stdout
    assert "samples.jsonl line 7 is not JSON" in result.stderr
    assert not (tmp_path / "run" / run_folder.JOURNAL).exists()
