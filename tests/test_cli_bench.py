"""`bench` as users type it: a checkpoint, the shipped model, a bare configuration, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.command import World, make_world, run
from tests.tiny import tiny_config
from vflowopt_search import run_folder, testbed
from vflowopt_search.benchmark.records import Benchmark
from vflowopt_search.benchmark.rows import Rows
from vflowopt_search.checkout import commit
from vflowopt_search.errors import ModelError
from vflowopt_search.strategy import Importance, ModelIdentity, Stage, Strategy

QUICK = ["--new-tokens", "2", "--repeats", "2", "--device", "cpu"]
SIZES = ["--batch-size", "1,2", "--resolution", "28x28"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    made = make_world(tmp_path_factory.mktemp("world"))
    for name, ratio in (("half", 0.5), ("whole", 1.0)):
        stages = (Stage(layer=1, keep_ratio=ratio),)
        strategy = Strategy(name=name, importance=Importance(score="uniform"), stages=stages)
        strategy.save(made.model.with_name(f"{name}.json"))
    return made


def half(world: World) -> Path:
    return world.model.with_name("half.json")


def test_a_checkpoint_is_measured_and_written(world: World, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    result = run("bench", half(world), "--model", world.model, *QUICK, *SIZES, "--output", file)
    assert result.exit_code == 0
    assert "half on" in result.stdout and "median" in result.stdout
    for word in (
        "first token",
        "vision, not pruned",
        "decoder",
        "of what FLOPs allow",
        "tokens after it",
        "whole answer",
        "KV cache",
        "peak memory",
    ):
        assert word in result.stdout
    found = Benchmark.load(file)
    assert [row.batch_size for row in found.rows] == [1, 2]
    assert found.rows[0].pruned is not None
    assert found.rows[0].pruned.visual_per_layer == (16,) + (8,) * 5
    assert not found.random_weights


def test_json_is_the_file(world: World, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    result = run(
        "bench",
        half(world),
        "--model",
        world.model,
        *QUICK,
        "--image",
        world.image,
        "--json",
        "--output",
        file,
    )
    told = json.loads(result.stdout)
    assert told == json.loads(file.read_text())
    assert (told["rows"][0]["width"], told["rows"][0]["height"]) == (40, 40)
    assert told["prompt"].startswith("the image given")
    names = {"vflowopt-search", "torch", "transformers", "python"}
    assert set(told["versions"]) - {"commit"} == names
    assert told["versions"].get("commit") == commit()


def test_the_shipped_model_and_strategy(tmp_path: Path) -> None:
    strategy = Path(__file__).parents[1] / "studies" / "quickstart" / "strategy.json"
    result = run(
        "bench",
        strategy,
        "--new-tokens",
        "2",
        "--repeats",
        "1",
        "--resolution",
        "112x112",
        "--json",
    )
    told = json.loads(result.stdout)
    assert told["model"] == "testbed"
    assert told["rows"][0]["retained"] == pytest.approx(0.1, abs=0.01)


def test_a_folder_stands_for_the_strategy_in_it(world: World, tmp_path: Path) -> None:
    strategy = Strategy.load(half(world))
    strategy.save(tmp_path / "strategy.json")
    result = run("bench", tmp_path, "--model", world.model, *QUICK, "--json")
    assert json.loads(result.stdout)["strategy"] == "half"


def test_a_run_keeps_its_benchmark_for_the_report(world: World, tmp_path: Path) -> None:
    strategy, file = tmp_path / run_folder.STRATEGY, tmp_path / run_folder.BENCHMARK
    Strategy.load(half(world)).save(strategy)
    quick: list[str | Path] = ["--model", world.model, *QUICK, "--resolution", "28x28"]
    assert not run("bench", strategy, *quick).stdout.endswith(f"{run_folder.BENCHMARK}\n")
    assert not file.exists()  # a file beside no study
    told = run("bench", tmp_path, *quick).stdout
    assert told.endswith(f"\nbenchmark {file}\n")
    assert Benchmark.load(file).strategy == "half"
    file.unlink()
    (tmp_path / run_folder.JOURNAL).touch()
    assert file.name in run("bench", strategy, *quick).stdout and file.exists()
    file.unlink()
    elsewhere = tmp_path / "other.json"
    assert str(elsewhere) in run("bench", tmp_path, *quick, "--output", elsewhere).stdout
    assert elsewhere.exists() and not file.exists()


def test_what_was_measured_before_ctrl_c_is_printed_and_kept(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Rows, "row", interrupted_after(1, Rows.row))
    command: list[str | Path] = ["bench", half(world), "--model", world.model, *QUICK, *SIZES]
    file = tmp_path / "bench.json"
    result = run(*command, "--output", file)
    assert result.exit_code == 130
    assert "interrupted; 1 of 2 kinds of prompt measured" in result.stderr
    assert "batch 1, image 28x28" in result.stdout and "batch 2" not in result.stdout
    found = Benchmark.load(file)
    assert [row.batch_size for row in found.rows] == [1] and found.kinds == 2
    monkeypatch.setattr(Rows, "row", interrupted_after(0, Rows.row))
    result = run(*command, "--json")
    assert result.exit_code == 130 and result.stdout == ""
    assert "interrupted; 0 of 2 kinds of prompt measured" in result.stderr


def interrupted_after(number: int, measure: Any) -> Any:
    done: list[Any] = []

    def row(self: Any, inputs: Any, size: Any) -> Any:
        if len(done) == number:
            raise KeyboardInterrupt
        done.append(measure(self, inputs, size))
        return done[-1]

    return row


def test_what_was_measured_before_an_error_is_kept(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measure = Rows.row

    def row(self: Any, inputs: Any, size: Any) -> Any:
        if len(inputs["input_ids"]) == 2:
            raise ModelError("the machine caught fire")
        return measure(self, inputs, size)

    monkeypatch.setattr(Rows, "row", row)
    file = tmp_path / "bench.json"
    result = run("bench", half(world), "--model", world.model, *QUICK, *SIZES, "--output", file)
    assert result.exit_code == 1 and "caught fire" in result.stderr
    assert len(Benchmark.load(file).rows) == 1


def test_memory_of_a_process_is_said_to_be_one(world: World) -> None:
    found = run("bench", half(world), "--model", world.model, *QUICK).stdout
    assert "peak memory: of the whole process" in found
    assert "decoder: its gain counts" in found


@pytest.mark.parametrize("family", ["llava", "llava_onevision"])
def test_a_configuration_is_enough(family: str, world: World, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(tiny_config(family).to_json_string())
    result = run(
        "bench", half(world), "--random-init", config, *QUICK, "--resolution", "56x56", "--json"
    )
    told = json.loads(result.stdout)
    assert told["random_weights"] and told["model"] == f"random {config}"
    assert told["prompt"] == "noise images and random text, without a tokenizer"
    assert told["rows"][0]["visual_tokens"] == {"llava": 16, "llava_onevision": 88}[family]


def test_random_weights_with_the_checkpoints_processor(world: World) -> None:
    result = run(
        "bench",
        half(world),
        "--random-init",
        world.model,
        *QUICK,
        "--resolution",
        "28x28",
        "--json",
    )
    assert "through LlavaProcessor" in json.loads(result.stdout)["prompt"]


def naming(strategy: Strategy, model: str, folder: Path) -> Path:
    """The strategy as a search on a model of that name would write it."""
    identity = ModelIdentity(
        model_type="llava_onevision", name=model, decoder_layers=6, vision_layers=4, hidden_size=32
    )
    strategy.model_copy(update={"model": identity}).save(folder / "named.json")
    return folder / "named.json"


def test_a_configuration_takes_the_place_of_the_model_that_the_strategy_names(
    world: World, tmp_path: Path
) -> None:
    config = tmp_path / "config.json"
    config.write_text(tiny_config("llava_onevision").to_json_string())
    quick = [*QUICK, "--resolution", "28x28", "--json"]
    elsewhere = naming(Strategy.load(half(world)), "no/where", tmp_path)
    told = json.loads(run("bench", elsewhere, "--random-init", config, *quick).stdout)
    assert told["model"] == f"random {config}" and "without a tokenizer" in told["prompt"]
    searched = naming(Strategy.load(half(world)), f"random {config}", tmp_path)
    again = json.loads(run("bench", searched, *quick).stdout)
    assert again["random_weights"] and again["model"] == told["model"]


def test_a_model_that_is_named_gives_the_processor(world: World, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(testbed.load_model().config.to_json_string())
    command: list[str | Path] = [
        "bench",
        half(world),
        "--random-init",
        config,
        *QUICK,
        "--resolution",
        "56x56",
    ]
    assert "without a tokenizer" in json.loads(run(*command, "--json").stdout)["prompt"]
    named = json.loads(run(*command, "--model", "testbed", "--json").stdout)
    assert named["prompt"].startswith("noise images and 'what is in the image ?' through")
    assert named["random_weights"]


def test_no_table_calls_a_no_op_a_speed_up(world: World) -> None:
    whole = world.model.with_name("whole.json")
    result = run("bench", whole, "--model", world.model, *QUICK, "--resolution", "28x28")
    assert result.exit_code == 1 and result.stdout == ""
    assert "'whole' removed no visual token, so that there is no speed-up" in result.stderr


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--batch-size", "0"], "--batch-size: '0' is not a whole number from 1 on; give one, or"),
        (["--batch-size", "1,"], "--batch-size: '' is not a whole number from 1 on"),
        (["--resolution", "28"], "--resolution: '28' is not WIDTHxHEIGHT in pixels, each from 1"),
        (["--resolution", "0x9"], "'0x9' is not WIDTHxHEIGHT"),
        (["--resolution", "9x99999"], "from 1 to 16384; write it as 1280x720"),
    ],
)
def test_wrong_sizes_are_wrong_usage(more: list[str], sentence: str, world: World) -> None:
    result = run("bench", half(world), "--model", world.model, *more)
    assert result.exit_code == 2
    assert sentence in " ".join(result.stderr.replace("│", " ").split())


def test_what_cannot_be_measured_is_one_sentence(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("bench", half(world), "--model", world.model, "--image", "none.png")
    assert result.exit_code == 1 and "none.png is no readable image" in result.stderr


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def measured(*args: Any, **options: Any) -> None:
        raise AssertionError("hours may go by here")

    monkeypatch.setattr("vflowopt_search.benchmark.run.benchmark", measured)
    for file, sentence in (("none/a.json", "there is no folder"), ("", "which is a folder")):
        result = run(
            "bench", half(world), "--model", world.model, "--output", tmp_path / file, *QUICK
        )
        assert result.exit_code == 1 and sentence in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_without_a_model_or_a_processor_the_way_out_is_told(world: World, tmp_path: Path) -> None:
    told = " ".join(run("bench", half(world)).stderr.replace("│", " ").split())
    assert "--model: the strategy names no model; name one, or give a configuration with" in told
    config = tmp_path / "config.json"
    config.write_text(tiny_config("llava").to_json_string())
    result = run("bench", half(world), "--random-init", config, "--prompt", "how many")
    assert "--prompt and --image need a processor" in result.stderr
