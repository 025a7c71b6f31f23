"""Every way in which a strategy file can be wrong, and the sentence that says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.examples import full_strategy
from vflowopt_search.errors import StrategyError
from vflowopt_search.strategy import Objective, Stage, Strategy


def without(key: str) -> Callable[[dict[str, Any]], object]:
    return lambda content: content.pop(key)


def stage_with(**fields: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["stages"][1].update(fields)


def part_with(part: str, **fields: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content[part].update(fields)


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "newer version": (
        lambda c: c.update(format="vflowopt-strategy/2", new_field=1),
        r"has format 'vflowopt-strategy/2' but this version reads 'vflowopt-strategy/1'; upgrade",
    ),
    "no version": (without("format"), r"has format None but this version reads"),
    "unknown field": (lambda c: c.update(keep=1), r"`keep` is not a known field; remove"),
    "unknown stage field": (stage_with(keep=1), r"`stages\[1\]\.keep` is not a known field"),
    "unknown model field": (part_with("model", layers=1), r"`model\.layers` is not a known field"),
    "no name": (without("name"), r"`name` is missing; add it"),
    "no stages": (lambda c: c.update(stages=[]), r"`stages` is \[\] but must have at least 1 item"),
    "stages not a list": (lambda c: c.update(stages={}), r"`stages` is \{\} but must be a list;"),
    "model not a mapping": (
        lambda c: c.update(model=[1]),
        r"`model` is \[1\] but must be a mapping of field names",
    ),
    "ratio 0": (
        stage_with(keep_ratio=0),
        r"`stages\[1\]\.keep_ratio` is 0 but must be greater than 0; correct",
    ),
    "ratio above 1": (
        stage_with(keep_ratio=1.5),
        r"`stages\[1\]\.keep_ratio` is 1.5 but must be less than or equal to 1; correct",
    ),
    "ratio overflows": (
        stage_with(keep_ratio=10**400),
        r"`stages\[1\]\.keep_ratio` is 1000.*\.\.\. but must be a valid number",
    ),
    "ratio as text": (stage_with(keep_ratio="0.5"), r"is '0\.5' but must be a valid number"),
    "ratio as truth": (stage_with(keep_ratio=True), r"is True but must be a valid number"),
    "layer as float": (stage_with(layer=3.0), r"`stages\[1\]\.layer` is 3\.0 but must be a valid"),
    "negative layer": (stage_with(layer=-1), r"`stages\[1\]\.layer` is -1 but must be greater"),
    "same layer twice": (
        stage_with(layer=0),
        r"stages are at layers \[0, 0\] but layers must increase strictly; order them",
    ),
    "layers fall": (
        lambda c: c["stages"].reverse(),
        r"stages are at layers \[3, 0\] but layers must increase strictly; order them",
    ),
    "layer beyond the model": (
        stage_with(layer=8),
        r"stages\[1\]\.layer is 8 but the model has 8 decoder layers \(0 to 7\); correct",
    ),
    "vision layer beyond the model": (
        part_with("importance", vision_layer=6),
        r"importance\.vision_layer is 6 but the model has 6 vision layers, counted from 0; correct",
    ),
    "entropy without pixels": (
        part_with("importance", pixels=None),
        r"`importance`: entropy_weight is 0\.31 but entropy needs `pixels`.*; add them or set",
    ),
    "entropy out of range": (
        part_with("importance", entropy_weight=-1.5),
        r"`importance\.entropy_weight` is -1\.5 but must be greater than or equal to -1",
    ),
    "negative threshold": (
        part_with("importance", context_threshold=-1),
        r"`importance\.context_threshold` is -1 but must be greater than or equal to 0",
    ),
    "channels differ": (
        lambda c: c["importance"]["pixels"]["std"].pop(),
        r"`importance\.pixels`: mean has 3 channels and std has 2.*; give as many",
    ),
    "std of 0": (
        lambda c: c["importance"]["pixels"].update(std=[1, 1, 0]),
        r"`importance\.pixels\.std\[2\]` is 0 but must be greater than 0",
    ),
    "recycling without layer 0": (
        lambda c: c["stages"][0].update(layer=1),
        r"recycling merges tokens before .* first stage is at layer 1; add a stage at layer 0",
    ),
    "cell below a token": (part_with("recycling", cell=0.5), r"`recycling\.cell` is 0\.5 but must"),
    "separators": (
        lambda c: c.update(separators="maybe"),
        r"`separators` is 'maybe' but must be 'keep' or 'drop'; correct",
    ),
    "positions": (
        lambda c: c.update(positions="new"),
        r"`positions` is 'new' but must be 'original' or 'packed'; correct",
    ),
    "budget": (part_with("budget", mean_retained=1.01), r"`budget\.mean_retained` is 1\.01 but"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_file_is_refused_in_one_sentence_that_names_it(tmp_path: Path, case: str) -> None:
    spoil, sentence = REFUSED[case]
    content = json.loads(full_strategy().to_json())
    spoil(content)
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(content))
    with pytest.raises(StrategyError, match=sentence) as refused:
        Strategy.load(file)
    told = str(refused.value)
    assert told.startswith(str(file))
    assert "\n" not in told
    assert "pydantic" not in told


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", r"here is not valid JSON \(Expecting value"),
        ("{", r"here is not valid JSON .*; export the strategy again"),
        ("[]", r"here: the content is \[\] but must be a mapping of field names"),
        ('{"name": "a", "name": "b"}', r"here is not valid JSON \(key 'name' is given twice\)"),
        ('{"a": NaN}', r"here is not valid JSON \(NaN is not a number of JSON\)"),
        ('{"a": -Infinity}', r"here is not valid JSON \(-Infinity is not a number of JSON\)"),
        ("[" * 200_000, r"here is not valid JSON \(nested too deeply\)"),
        ('{"a": ' + "9" * 5000 + "}", r"here is not valid JSON \(Exceeds the limit"),
    ],
)
def test_a_wrong_text_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(StrategyError, match=sentence):
        Strategy.loads(text, "here")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_refused(number: float) -> None:
    with pytest.raises(
        StrategyError, match=r"Stage: `keep_ratio` is -?(nan|inf) but must be a fin"
    ):
        Stage(layer=0, keep_ratio=number)
    with pytest.raises(StrategyError, match="must be a finite number"):
        Objective(divergence=number, metric="kl")
    text = full_strategy().to_json().replace("0.16", "1e999")
    with pytest.raises(StrategyError, match=r"`stages\[0\]\.keep_ratio` is inf but must be a fin"):
        Strategy.loads(text)


def test_a_number_too_long_to_print_is_refused_alike() -> None:
    with pytest.raises(StrategyError, match="`keep_ratio` is int too long to print but must"):
        Stage(layer=0, keep_ratio=10**5000)
