"""`doctor MODEL`, `models`, and the self-check before a search."""

from __future__ import annotations

import json
from importlib.metadata import requires
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.command import World, make_world, run
from tests.families import tiny
from tests.families.saving import save_family
from vflowopt_search import run_folder
from vflowopt_search.adapters.loading import require_kin
from vflowopt_search.adapters.registry import families
from vflowopt_search.cli import doctor
from vflowopt_search.pruning.single import PruningEngine

SAVED = ["llava", "llava_onevision", "qwen2_5_vl", "internvl", "idefics3"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("VFLOWOPT_SEARCH_CACHE", str(folder))
    return folder


def break_the_engine(patch: pytest.MonkeyPatch) -> None:
    """What comes after the first stage is no longer what was kept."""
    original = PruningEngine._shortened

    def reversed_(self: Any, kwargs: dict[str, Any], run: Any) -> dict[str, Any]:
        changed = original(self, kwargs, run)
        return changed | {"inputs_embeds": changed["inputs_embeds"].flip(1)}

    patch.setattr(PruningEngine, "_shortened", reversed_)


# --- doctor


def test_doctor_says_why_a_gpu_goes_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = SimpleNamespace(name="H200", total_memory=139 * 2**30)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: facts)
    reasons = {0: None, 1: "RuntimeError: Failed to find C compiler."}
    monkeypatch.setattr(
        "vflowopt_search.ops.dispatch.why_no_kernels", lambda device: reasons[device.index]
    )
    notes = [(finding.usable, finding.note) for finding in doctor._devices()[1:]]
    told = "works, but without the kernels: RuntimeError: Failed to find C compiler."
    assert notes == [(True, ""), (True, told)]


@pytest.mark.parametrize("name", SAVED)
def test_doctor_passes_a_checkpoint_of_an_ordinary_folder(name: str, tmp_path: Path) -> None:
    save_family(tmp_path, name)
    result = run("doctor", tmp_path, "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert (told["model"], told["model_type"]) == (str(tmp_path), name)
    assert told["passed"]
    assert told["note"] == ""
    assert "a noise image through" in told["inputs"]
    assert all(check["figure"] <= check["limit"] for check in told["checks"])


def test_doctor_prints_a_table(world: World) -> None:
    heading, asked, columns, *rows, verdict = run("doctor", world.model).stdout.splitlines()
    assert heading == f"{world.model} (llava) on cpu, float32"
    assert asked == "served by LlavaAdapter, asked with a noise image through LlavaProcessor"
    assert columns.split() == ["check", "figure", "limit", "ok"]
    assert len(rows) > 8
    assert all(line.split()[-1] == "yes" for line in rows)
    assert verdict == f"this model is pruned correctly here: all {len(rows)} checks passed"
    told = json.loads(run("doctor", world.model, "--dtype", "bfloat16", "--json").stdout)
    assert (told["device"], told["dtype"]) == ("cpu", "bfloat16")
    names = [check["check"] for check in told["checks"]]
    assert "everything kept = unpruned, logits" in names
    assert "nothing masked = unpruned, logits" in names
    assert not [name for name in names if "forbidden" in name]


def test_doctor_tells_how_the_bundled_model_is_named() -> None:
    (found,) = (one for one in doctor._shipped() if one.what == "bundled model")
    assert found.note == "called `testbed`, as in `vflowopt-search search testbed`"


def test_doctor_without_a_processor_says_so(tmp_path: Path) -> None:
    save_family(tmp_path, "llama4")
    result = run("doctor", tmp_path)
    assert result.exit_code == 0, result.stderr
    assert "pixels of noise and arbitrary words, for there is no processor" in result.stdout
    assert "no processor: " in result.stdout


def test_doctor_of_a_configuration_alone(world: World) -> None:
    for more in ([], ["--dtype", "bfloat16"]):
        result = run("doctor", "--random-init", world.model / "config.json", "--json", *more)
        assert json.loads(result.stdout)["passed"]


def test_random_weights_without_a_processor_are_told_how_to_name_one(
    world: World, tmp_path: Path
) -> None:
    config = tmp_path / "config.json"
    config.write_text(tiny("qwen2_vl").config().to_json_string())
    absent = (
        f"there is no processor beside {config}; name as MODEL a checkpoint of type qwen2_vl, "
        "whose processor is then used"
    )
    alone = run("doctor", "--random-init", config)
    assert alone.exit_code == 1
    needed = "a qwen2_vl model cannot be checked without its processor"
    assert alone.stderr == f"error: {needed}, and {absent}\n"
    searched = run("search", "--random-init", config, "--calibration", world.samples)
    assert searched.exit_code == 1
    assert absent in searched.stderr and "huggingface.co" not in searched.stderr


def test_random_weights_refuse_the_processor_of_another_family(
    world: World, tmp_path: Path
) -> None:
    config = tmp_path / "config.json"
    config.write_text(tiny("qwen2_vl").config().to_json_string())
    for model in ("testbed", str(world.model)):
        result = run("doctor", model, "--random-init", config)
        assert result.exit_code == 1
        kind = "llava_onevision" if model == "testbed" else "llava"
        assert result.stderr == (
            f"error: {config} is of type qwen2_vl, but {model} is of type {kind}, whose processor "
            "makes other inputs; name a checkpoint of type qwen2_vl\n"
        )
    relative = tmp_path / "relative"
    relative.mkdir()
    tiny("qwen2_5_vl").config().save_pretrained(relative)
    require_kin(config, relative)


def test_doctor_fails_where_pruning_is_wrong(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    break_the_engine(monkeypatch)
    result = run("doctor", world.model)
    assert result.exit_code == 1
    [removal] = [line for line in result.stdout.splitlines() if line.startswith("before the dec")][
        :1
    ]
    assert removal.split()[-1] == "NO"
    failed = sum(line.split()[-1:] == ["NO"] for line in result.stdout.splitlines())
    verdict = result.stdout.splitlines()[-1]
    assert verdict.startswith(f"this model would be pruned wrongly here: {failed} of ")
    assert verdict.endswith(" checks failed; try another version of transformers")


def test_doctor_of_a_model_that_is_not_there(tmp_path: Path) -> None:
    result = run("doctor", tmp_path / "none")
    assert result.exit_code == 1
    assert "does not exist; give a checkpoint's folder" in result.stderr


def test_doctor_lists_what_the_metadata_requires() -> None:
    lines = requires("vflowopt-search") or []
    needed = [line for line in lines if "extra" not in line]
    assert len(doctor.required_packages()) == len(needed)
    assert {"torch", "transformers", "optuna"} <= set(doctor.required_packages())
    assert not {"pytest", "ruff"} & set(doctor.required_packages())


# --- models


@pytest.mark.parametrize("width", [80, 200])
def test_models_are_readable_at_any_width(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    lines = run("models").stdout.splitlines()
    assert max(map(len, lines)) <= width
    first = [line.split(" ")[0] for line in lines]
    assert all(family.model_type in first for family in families())
    words = " ".join(" ".join(lines).split())
    for wanted in ("importance scores", "received_attention", "by structure, after the self-ch"):
        assert wanted in words
    assert "any other" in words


def test_models_in_json_end_with_the_fallback() -> None:
    told = json.loads(run("models", "--json").stdout)
    assert [record["model_type"] for record in told[:-1]] == [f.model_type for f in families()]
    assert told[-1]["model_type"] == "any other"
    assert "received_attention" not in told[-1]["scores"]


# --- before a search


def test_a_search_checks_once_and_remembers(
    world: World, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(*world.search(tmp_path / "one", "--trials", "1"))
    assert first.exit_code == 0, first.stderr
    assert "checking that pruning is correct" in first.stderr
    [kept] = (cache / "self-checks").iterdir()
    assert json.loads(kept.read_text())["passed"]

    def checked_again(*args: Any) -> None:
        raise AssertionError("it is remembered")

    monkeypatch.setattr("vflowopt_search.selfcheck.check.check_model", checked_again)
    again = run(*world.search(tmp_path / "two", "--trials", "1"))
    assert again.exit_code == 0, again.stderr
    assert "checking" not in again.stderr


def test_a_search_is_refused_where_pruning_is_wrong(
    world: World, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_the_engine(monkeypatch)
    result = run(*world.search(tmp_path / "out", "--trials", "1"))
    assert result.exit_code == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: this llava model fails the self-check 'before the decoder")
    assert "where at most 5e-05 is right" in last
    assert not (tmp_path / "out" / run_folder.STRATEGY).exists()
    assert not (cache / "self-checks").exists()
    skipped = run(*world.search(tmp_path / "out", "--trials", "1", "--no-self-check"))
    assert skipped.exit_code == 0, skipped.stderr
