"""What the README shows is what there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests import tiny
from tests.command import run
from vflowopt_search.adapters.registry import families, identity_of
from vflowopt_search.budget import mean_retained
from vflowopt_search.calibration.encoding import encode
from vflowopt_search.calibration.samples import Sample
from vflowopt_search.strategy import Importance, Stage, Strategy

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def test_no_figure_is_left_out() -> None:
    assert "@@" not in README


def test_deployment_block_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = blocks("python")
    model = tiny.tiny_model("llava_onevision")
    sample = Sample("s", "how many objects", (Image.new("RGB", (50, 40), "red"),))
    inputs = encode(tiny.tiny_processor("llava_onevision"), [sample])
    strategy = Strategy(
        name="mine",
        model=identity_of(model),
        importance=Importance(score="uniform"),
        stages=(Stage(layer=0, keep_ratio=0.5), Stage(layer=3, keep_ratio=0.5)),
    )
    monkeypatch.chdir(tmp_path)
    strategy.save("strategy.json")
    names: dict[str, Any] = {"model": model, "inputs": {**inputs, "max_new_tokens": 2}}
    exec(block, names)
    (whole,) = names["applied"].last.visual_tokens
    half, quarter = round(whole / 2), round(whole / 4)
    assert capsys.readouterr().out == f"{[half] * 3 + [quarter] * 3}\n"
    assert names["ids"].shape[0] == 1


def test_strategy_block_is_a_strategy() -> None:
    (block,) = blocks("json")
    strategy = Strategy.loads(block)
    assert strategy.name == "mine"
    assert strategy.budget is not None
    kept = mean_retained(strategy.stages, 28)
    assert strategy.budget.mean_retained == pytest.approx(kept, abs=5e-5)


def test_command_table_names_every_command() -> None:
    rows = re.findall(r"^\| `(\w+)[^`]*` \|", README, flags=re.MULTILINE)
    shown = set(re.findall(r"^│ (\w+) ", run("--help").stdout, flags=re.MULTILINE))
    commands = set(rows) - {"model_type", *(family.model_type for family in families())}
    assert commands == shown


def test_options_that_are_shown_exist() -> None:
    shells = "\n".join(blocks("bash"))
    commands = ("search", "apply", "evaluate", "bench", "report", "dashboard")
    helps = "".join(run(command, "--help").stdout for command in commands)
    options = set(re.findall(r"(--[a-z-]+)", shells))
    assert {"--calibration", "--image"} <= options
    assert [option for option in options if option not in helps] == []


def test_family_table_says_of_every_family_what_its_adapter_says() -> None:
    for family in families():
        start = f"| {', '.join(family.inputs)} | {', '.join(family.positions)} | "
        [row] = [line for line in README.splitlines() if line.startswith(start)]
        assert f"`{family.model_type}`" in row
