"""A budget of less than one token in a layer is not met, and everybody who tells of it says so."""

from __future__ import annotations

import html
import json
from pathlib import Path

import pytest

from tests.command import World, run
from tests.small_set import small_set
from tests.tiny import tiny_model, tiny_processor
from vflowopt_search import run_folder, search
from vflowopt_search.strategy import Importance, ModelIdentity, Stage, Strategy
from vflowopt_search.whole_tokens import overshoot

MODEL = ModelIdentity(model_type="fake", decoder_layers=8, vision_layers=6, hidden_size=128)
SENTENCE = "of the visual tokens fewer than one token would be left in a layer; one always stays: "


def keeping(*stages: tuple[int, float]) -> Strategy:
    return Strategy(
        name="mine",
        model=MODEL,
        importance=Importance(vision_layer=1),
        stages=tuple(Stage(layer=layer, keep_ratio=ratio) for layer, ratio in stages),
    )


def test_the_sentence_tells_what_is_kept() -> None:
    told = overshoot(0.001, keeping((0, 0.001)), (169, 259))
    assert told == f"At 0.1% {SENTENCE}0.39% to 0.59% are kept."
    assert overshoot(0.001, keeping((0, 0.001)), (200, 200)) == f"At 0.1% {SENTENCE}0.50% is kept."


@pytest.mark.parametrize("counts", [(169, 259), (0, 169), (0, 0), ()])
def test_nothing_is_said_of_a_budget_that_is_met(counts: tuple[int, ...]) -> None:
    assert overshoot(0.1, keeping((0, 0.1)), counts) == ""
    assert overshoot(0.25, keeping((0, 0.495), (4, 0.01)), counts) == ""  # rounding, of few


def test_what_rounding_alone_makes_of_it_is_said_otherwise() -> None:
    told = overshoot(0.13, keeping((0, 0.13)), (12, 12))  # 1.56 tokens are 2
    assert told == "In whole tokens 16.67% of the visual tokens is kept, not 13%."


def test_a_strategy_for_any_model_keeps_nothing_that_is_known() -> None:
    assert overshoot(0.001, None, (169,)) == ""
    assert overshoot(0.001, keeping((0, 0.001)).model_copy(update={"model": None}), (169,)) == ""


def test_a_search_and_its_report_say_so(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    few = ("--trials", "1", "--no-held-out", "--no-self-check")
    result = run(*world.search(folder, *few, "--retain", "0.001"))
    assert result.exit_code == 0, result.stderr
    [line] = [one for one in result.stdout.splitlines() if SENTENCE in one]
    assert line.startswith("At 0.1% ")
    told = json.loads((folder / run_folder.SUMMARY).read_text())
    assert told["budget"] == line
    fewest, most = told["calibration"]["visual_tokens"]
    assert f"{1 / most:.2%}" in line and 0 < fewest <= most
    measured = json.loads((folder / run_folder.OVERLAYS / "overlays.json").read_text())["samples"]
    assert {sample["visual_tokens"] for sample in measured} <= set(range(fewest, most + 1))
    assert {kept for sample in measured for kept in sample["tokens_per_layer"]} == {1}
    assert line in html.unescape((folder / run_folder.REPORT).read_text())
    usual = run(*world.search(tmp_path / "usual", *few))
    assert "In whole tokens" not in usual.stdout and SENTENCE not in usual.stdout


def test_in_python_it_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    search(tiny_model("llava"), tiny_processor("llava"), small_set(), retain=0.001, trials=1)
    assert any(SENTENCE in message for message in caplog.messages)
