"""`search` and `apply` end to end, on a tiny random model."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.command import World, run, spawn
from vflowopt_search import run_folder
from vflowopt_search.budget import mean_retained
from vflowopt_search.calibration.choice import load_calibration
from vflowopt_search.calibration.rows import Columns
from vflowopt_search.cli import preparation
from vflowopt_search.errors import DivergenceError
from vflowopt_search.model_source import ModelSource, load
from vflowopt_search.objective import build_objective
from vflowopt_search.strategy import Strategy

Arguments = list[str | Path]
TRIALS = 6
FILES = (run_folder.STRATEGY, run_folder.TRIALS, run_folder.JOURNAL, run_folder.REPORT)


@pytest.fixture(scope="module")
def searched(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a finished search."""
    output = tmp_path_factory.mktemp("runs") / "mine"
    result = run(*world.search(output, "--trials", str(TRIALS)))
    assert result.exit_code == 0, result.stderr
    text = result.stdout
    assert f"mine: {TRIALS} of {TRIALS} trials" in text
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip()}
    for name in ("found", "random", "uniform", "attention"):
        assert rows[name][0] == "30.0%"
        assert float(rows[name][1]) > 0
    assert all(str(output / name) in text for name in FILES)
    assert f"trials: {TRIALS}/{TRIALS}, best" in result.stderr
    assert "note: separators are fixed at drop: the model has none" in result.stderr
    return output


def test_search_writes_its_files(searched: Path, world: World) -> None:
    strategy = Strategy.load(searched / run_folder.STRATEGY)
    assert strategy.name == "mine"
    assert strategy.model is not None
    assert strategy.model.name == str(world.model)
    assert mean_retained(strategy.stages, strategy.model.decoder_layers) == pytest.approx(0.3)
    assert len(pd.read_parquet(searched / run_folder.TRIALS)) == TRIALS
    assert "mine" in (searched / run_folder.REPORT).read_text()
    plain = json.loads((searched / run_folder.BASELINES).read_text())
    assert set(plain) == {"random", "uniform", "attention"}


def test_the_file_states_both_halves(searched: Path, world: World) -> None:
    """The best strategy is measured on the four samples that the search did not see."""
    origin = Strategy.load(searched / run_folder.STRATEGY).provenance
    assert origin is not None
    assert origin.objective is not None
    assert origin.calibration is not None
    assert (origin.calibration.samples, origin.calibration.held_out) == (6, 4)
    assert origin.objective.held_out is not None
    assert origin.objective.held_out != origin.objective.divergence
    columns = Columns(prompt="question")
    rest = load_calibration(world.samples, columns=columns, num_samples=6, skip=6)
    model, processor = load(ModelSource(str(world.model)))
    objective = build_objective(model, processor, rest)
    values = objective.measure(Strategy.load(searched / run_folder.STRATEGY), range(4))
    assert origin.objective.held_out == pytest.approx(sum(values) / 4, abs=1e-6)
    summary = json.loads((searched / "summary.json").read_text())
    assert summary["best"]["held_out"] == origin.objective.held_out
    assert all(row["held_out"] > 0 for row in summary["comparison"])


def test_a_search_that_sees_everything_says_that_nothing_is_held_out(
    world: World, tmp_path: Path
) -> None:
    asked = world.search(tmp_path / "out", "--trials", "1", "--samples", "10")
    result = run(*asked)
    assert result.exit_code == 0, result.stderr
    assert "no images left that the search did not see" in result.stderr
    result = run(*asked, "--no-held-out")
    assert "no images left" not in result.stderr
    assert "held out" not in result.stdout


def test_again_it_ends_at_once_and_tells_the_same(
    searched: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured_again(*args: Any) -> None:
        raise AssertionError("a finished search must not measure anything")

    monkeypatch.setattr("vflowopt_search.objective.Objective.measure_many", measured_again)
    before = (searched / run_folder.STRATEGY).read_bytes()
    result = run(*world.search(searched, "--trials", str(TRIALS), "--json"))
    told = json.loads(result.stdout)
    said = [line.split(":")[0] for line in result.stderr.splitlines()]
    assert said == ["reading calibration samples", f"loading {world.model}", "note"]
    assert (told["finished"], told["interrupted"], told["trials"]["done"]) == (True, False, TRIALS)
    assert told["recipe"]["retain"] == 0.3
    assert told["calibration"]["samples"] == 6
    assert told["environment"]["versions"]["torch"]
    assert told["comparison"][0]["name"] == "found"
    assert told["comparison"][0]["divergence"] == told["best"]["divergence"]
    assert set(told["files"]) == {"strategy", "trials", "study", "report"}
    assert (searched / run_folder.STRATEGY).read_bytes() == before


def test_another_seed_in_the_same_folder_is_refused(searched: Path, world: World) -> None:
    result = run(*world.search(searched, "--trials", str(TRIALS), "--seed", "1"))
    assert result.exit_code == 1
    assert "was made with seed 0 but is resumed with seed 1" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--space", "vflowpot"], "'vflowpot' is neither a shipped name"),
        (["--calibration", "none.jsonl"], "none.jsonl does not exist"),
        (["--columns", "prompt=ask"], "ask"),
        (["--study", "quickest"], "'quickest' is neither a shipped name"),
        (["--device", "cuda:7"], "device cuda:7 was asked for but torch sees "),
        (["--storage", "none://x"], "the none database cannot be opened ("),
    ],
)
def test_wrong_input_is_one_sentence(
    world: World, tmp_path: Path, more: list[str], sentence: str
) -> None:
    result = run(*world.search(tmp_path / "new" / "out", *more))
    assert (result.exit_code, result.stdout) == (1, "")
    assert sentence in result.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []  # no folder of results without results


def test_a_refusal_leaves_what_was_there(world: World, tmp_path: Path) -> None:
    (tmp_path / run_folder.COMMAND).write_text("earlier")
    assert run(*world.search(tmp_path, "--storage", "none://x")).exit_code == 1
    assert (tmp_path / run_folder.COMMAND).read_text() == "earlier"


def test_an_output_that_is_a_file_is_refused(world: World) -> None:
    result = run(*world.search(world.samples))
    assert result.exit_code == 1
    assert f"but {world.samples} is a file; name a folder" in result.stderr


def test_a_study_without_one_good_trial_says_why(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverges(*args: Any) -> None:
        raise DivergenceError("sample 3 gave nan")

    monkeypatch.setattr("vflowopt_search.objective.Objective.measure_many", diverges)
    result = run(*world.search(tmp_path / "out", "--trials", "2"))
    assert result.exit_code == 1
    last = result.stderr.splitlines()[-1]
    assert "none of the 2 trials of study 'out' was measured on every sample" in last
    assert "last failure: DivergenceError: sample 3 gave nan" in last
    assert len(pd.read_parquet(tmp_path / "out" / run_folder.TRIALS)) == 2


def test_ctrl_c_before_the_first_trial(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vflowopt_search.cli.run.prepare", interrupted)
    result = run(*world.search(tmp_path / "out"))
    assert result.exit_code == 130
    assert "interrupted; all finished trials are kept. Go on with:\n" in result.stderr
    assert result.stdout == ""


def test_random_weights_from_a_configuration(world: World, tmp_path: Path) -> None:
    source: Arguments = ["search", "--random-init", world.model / "config.json", "--trials", "1"]
    data: Arguments = ["--calibration", world.samples, "--samples", "2", "--storage"]
    url = f"sqlite:///{tmp_path / 'study.db'}"
    result = run(*source, *data, url, "--output", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["trials"]["done"] == 1
    assert told["files"].keys() == {"strategy", "trials", "report"}
    strategy = Strategy.load(tmp_path / "out" / run_folder.STRATEGY)
    assert strategy.model is not None
    assert str(strategy.model.name).startswith("random ")


def test_the_shipped_model_also_tells_accuracy(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "HELD_OUT_QUESTIONS", 24)
    output = tmp_path / "quick"
    search: Arguments = ["search", "--trials", "1", "--samples", "4", "--output", output]
    told = json.loads(run(*search, "--json").stdout)
    rows = {row["name"]: row for row in told["comparison"]}
    assert list(rows) == ["unpruned", "found", "random", "uniform", "attention"]
    whole = rows["unpruned"]
    assert (whole["retained"], whole["divergence"], whole["accuracy_kept"]) == (1.0, 0.0, 1.0)
    assert whole["accuracy"] > 0.5
    kept = rows["found"]["accuracy"] / whole["accuracy"]
    assert rows["found"]["accuracy_kept"] == pytest.approx(kept)
    strategy = Strategy.load(output / run_folder.STRATEGY)
    assert strategy.model is not None
    assert strategy.model.name == "testbed"
    assert "accuracy kept" in (output / run_folder.REPORT).read_text()


def test_ctrl_c_keeps_what_was_found_and_resumes(world: World, tmp_path: Path) -> None:
    output = tmp_path / "stopped"
    with spawn(*world.search(output, "--trials", "5000"), cwd=tmp_path) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("trials: "):
                break
        process.send_signal(signal.SIGINT)
        told, complaints = process.communicate(timeout=60)
    assert process.returncode == 130, complaints
    assert "Traceback" not in complaints
    assert "interrupted, best so far" in complaints
    assert "--trials 5000" in complaints.splitlines()[-1]
    assert all((output / name).is_file() for name in FILES)
    done = int(told.split(" of 5000 trials")[0].split()[-1])
    resumed = json.loads(run(*world.search(output, "--trials", str(done), "--json")).stdout)
    assert resumed["finished"]
    assert resumed["trials"]["done"] == done


def test_apply_answers_twice(searched: Path, world: World) -> None:
    question: Arguments = ["--image", world.image, "--prompt", "how many objects is 1 ?"]
    command: Arguments = [
        "apply",
        searched / run_folder.STRATEGY,
        "--model",
        world.model,
        *question,
    ]
    told = json.loads(run(*command, "--max-new-tokens", "3", "--json").stdout)
    assert told["strategy"] == "mine"
    assert told["unpruned"]["tokens_per_layer"] == [16] * 6
    alive = told["pruned"]["tokens_per_layer"]
    assert sum(alive) / len(alive) / 16 == pytest.approx(
        0.3, abs=1 / 16
    )  # whole tokens, at least one
    assert alive == sorted(alive, reverse=True)
    assert told["unpruned"]["seconds"] > 0
    assert told["pruned"]["seconds"] > 0
    text = run(*command, "--max-new-tokens", "3").stdout
    assert "16 x 6" in text
    assert "unpruned" in text


def test_apply_refuses_what_is_no_image(searched: Path, world: World) -> None:
    command: Arguments = [
        "apply",
        searched / run_folder.STRATEGY,
        "--model",
        world.model,
        "--prompt",
        "is",
    ]
    for image, sentence in (
        (world.samples, "samples.jsonl is no readable image"),
        (
            world.samples.with_name("none.png"),
            "is no readable image (No such file or directory); check or convert it",
        ),
    ):
        result = run(*command, "--image", image)
        assert result.exit_code == 1
        assert sentence in result.stderr


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (["--device", "cuda:99"], "device cuda:99 was asked for but torch sees"),
        (["--prompt", "what is this ?"], "the calibration samples are the bundled ones"),
    ],
)
def test_wrong_input_about_the_shipped_model_is_one_sentence(
    tmp_path: Path, typed: list[str], sentence: str
) -> None:
    result = run("search", "--output", tmp_path / "out", "--samples", "8", *typed)
    assert result.exit_code == 1
    assert sentence in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
