"""Search-space files: the shipped ones, and every way in which a file can be wrong."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.test_search_space import SHIPPED
from tests.trials import written
from vflowopt_search.documents import read_yaml
from vflowopt_search.errors import SearchSpaceError
from vflowopt_search.parameters import Parameter
from vflowopt_search.search_space import SearchSpace, list_spaces


def test_shipped_spaces_are_listed_with_a_sentence() -> None:
    assert [name for name, _ in list_spaces()] == SHIPPED
    assert all(sentence.endswith(".") for _, sentence in list_spaces())


def test_a_space_loads_by_name_and_by_path(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(written("vflowopt")))
    assert SearchSpace.load(file) == SearchSpace.load("vflowopt") == SearchSpace.load(str(file))


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(SearchSpaceError, match=r"'vflow' is neither .*vflowopt-published.*; give"):
        SearchSpace.load("vflow")


LOG = {"low": 0, "high": 1, "log": True}
NOTHING: dict[str, Any] = {}
REFUSED: dict[str, tuple[str | int, Any, str]] = {
    "version": ("format", "vflowopt-space/2", r"`format` is 'vflowopt-space/2' but must be 'vfl"),
    "unknown field": ("stage", 1, r"`stage` is not a known field; remove or correct it"),
    "number as field": (1, 1, r"`\[1\]` is not a known field; remove or correct it"),
    "unknown word": ("recycling.cells", 1, r"`recycling\.cells` is not a known field"),
    "missing": ("positions", None, r"`positions`: None must be a fixed value, \{low, high\}"),
    "half a range": ("recycling.cell", {"low": 3}, r"`recycling\.cell`: must be either a fixed"),
    "two forms": ("recycling.cell", {"low": 3, "high": 4, "fixed": 3}, r"must be either a fixed"),
    "nothing": ("recycling.cell", NOTHING, r"`recycling\.cell`: must be either a fixed value, or"),
    "lost log": ("positions", {"choices": ["original", "packed"], "log": True}, r"belong to a ran"),
    "range turned": (
        "recycling.cell",
        {"low": 9, "high": 3},
        r"low is 9\.0 but must be below high",
    ),
    "log from 0": ("importance.context_threshold", LOG, r"log needs low above 0 \(it is 0\.0\)"),
    "step": (
        "recycling.cell",
        {"low": 3, "high": 4, "step": 0.3},
        r"step is 0\.3 but must be abov",
    ),
    "step 0": (
        "recycling.cell",
        {"low": 3, "high": 4, "step": 0},
        r"step is 0\.0 but must be abov",
    ),
    "text for a number": (
        "recycling.cell.low",
        "3",
        r"`recycling\.cell\.low` is '3' but must be a",
    ),
    "nan": ("recycling.cell.high", math.nan, r"`recycling\.cell\.high` is nan but must be a finit"),
    "cell": ("recycling.cell.low", 0.5, r"`recycling\.cell`: 0\.5 is not a number from 1 to"),
    "keep 0": (
        "stages.keep",
        {"low": 0, "high": 1},
        r"`stages\.keep`: 0\.0 is not a number above 0 to 1; correct",
    ),
    "keep": ("stages.keep.high", 1.5, r"`stages\.keep`: 1\.5 is not a number above 0 to 1"),
    "keep true": ("stages.keep", True, r"`stages\.keep`: True is not a number above 0 to 1"),
    "entropy": ("importance.entropy_weight.low", -2, r"`importance\.entropy_weight`: -2\.0 is not"),
    "depth": ("importance.vision_depth", 25, r"`importance\.vision_depth`: 25 is not a number fro"),
    "score": ("importance.score", 3, r"`importance\.score`: 3 is not a word; correct"),
    "word": ("positions", "new", r"`positions`: 'new' is not one of \['original', 'packed'\]"),
    "no choice": (
        "positions",
        {"choices": ["packed"]},
        r"choices are \['packed'\] but must be two",
    ),
    "one for true": ("recycling.enabled", {"choices": [0, 1]}, r"0 is not one of \[True, False\]"),
    "same twice": ("separators", {"choices": ["keep", "keep"]}, r"must be two or more different"),
    "half a stage": ("stages.count", {"low": 1, "high": 2.5}, r"2\.5 is not a whole number from 1"),
    "no stage": (
        "stages.count",
        {"low": 0, "high": 3},
        r"`stages\.count`: 0\.0 is not a whole num",
    ),
    "more stages": (
        "stages.count",
        {"low": 1, "high": 4},
        r"count allows 4 stages but depths names 3",
    ),
    "first depth": (
        "stages.depths",
        [{"low": 0, "high": 1}] * 3,
        r"the first of depths is a range but must be fixed, .*; write 0",
    ),
    "share": (
        "stages.depths",
        [0, "3/2", 0],
        r"`stages\.depths\[1\]`: '3/2' is not a share of the",
    ),
    "layer": ("stages.depths", [0, 9, 18], r"`stages\.depths\[1\]`: 9 is not a share of the depth"),
    "depth range": ("stages.depths", [0, {"low": 0, "high": 2}, 0], r"must be within 0 to 1"),
    "depth log": (
        "stages.depths",
        [0, {"low": 0.1, "high": 1, "log": True}, 0],
        r"high alone; wri",
    ),
    "late recycling": (
        "stages.depths",
        ["1/28", "1/3", "2/3"],
        r"recycling\.enabled may be true but the first stage is at depth 1/28; recycle with",
    ),
    "point range": (
        "textbook.pyramid.context_threshold",
        51,
        r"`textbook\.pyramid`: context_threshold is 51\.0 but must be from 0\.0 to 50\.0; co",
    ),
    "point open": (
        "textbook.pyramid.separators",
        None,
        r"`textbook\.pyramid`: separators is searched but has no value here; give it one",
    ),
    "point word": (
        "textbook.pyramid.positions",
        "new",
        r"positions is 'new' but must be one of \['original', 'packed'\]; correct it",
    ),
    "point fixed": (
        "textbook.pyramid.score",
        "random",
        r"score is 'random' but must be 'received_attention'; correct it",
    ),
    "point cell": (
        "textbook.pyramid.recycling_cell",
        4.0,
        r"recycling_cell is 4\.0 without recycl",
    ),
    "point ratios": (
        "textbook.pyramid.keep",
        [0.5, 0.5],
        r"`textbook\.pyramid`: 2 depths and 2 keep ratios are given, .*; give 1",
    ),
    "point ratio": (
        "textbook.pyramid.keep",
        [0.001],
        r"stage2_keep is 0\.001 but must be from 0\.01",
    ),
    "point depth": (
        "textbook.pyramid.depths",
        ["1/4", "1/2"],
        r"a depth is '1/4' but must be 0; c",
    ),
    "point share": ("textbook.pyramid.depths", [0, "2"], r"'2' is not a share of the depth"),
    "point unknown": (
        "textbook.pyramid.cell",
        4,
        r"`textbook\.pyramid\.cell` is not a known field",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_file_is_refused_in_one_sentence_that_names_it(tmp_path: Path, case: str) -> None:
    field, value, sentence = REFUSED[case]
    content = written("vflowopt")
    *parents, last = field.split(".") if isinstance(field, str) else [field]
    part = content
    for parent in parents:
        part = part[parent]
    part[last] = value
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(SearchSpaceError, match=sentence) as refused:
        SearchSpace.load(file)
    assert str(refused.value).startswith(f"{file}: ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: [", r"mine\.yaml is not readable YAML \(.*\); correct the file"),
        ("a: 1\nb: {c: 1, c: 2}\n", r"\(key 'c' is given twice in the mapping at line 2\)"),
        ("a: !!python/object/apply:os.getcwd []", r"is not readable YAML \(could not determine a"),
        ("a: 2020-13-45", r"is not readable YAML \(month must be in"),
        ("[" * 5000, r"is not readable YAML"),
        ("\x00", r"is not readable YAML"),
        ("- 1", r"the content is \[1\] but must be a mapping"),
        ("", r"the content is None but must be a mapping"),
        ("1: 2", r"mine\.yaml: `format` is missing; add it"),
    ],
)
def test_a_wrong_text_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(SearchSpaceError, match=sentence):
        SearchSpace.load(file)


def test_a_space_written_in_python_is_refused_alike() -> None:
    with pytest.raises(SearchSpaceError, match=r"Parameter: low is 2\.0 but must be below high"):
        Parameter(low=2, high=1)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        SearchSpaceError, match=r"cannot be read \(Is a directory\); check the path"
    ):
        read_yaml(tmp_path, SearchSpaceError)
