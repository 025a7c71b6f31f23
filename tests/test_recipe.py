"""Study recipes, and the folders that files of ours are found in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from vflowopt_search import resources
from vflowopt_search.errors import SearchSpaceError, VFlowOptError
from vflowopt_search.recipe import StudyRecipe
from vflowopt_search.resources import search_spaces_folder, studies_folder
from vflowopt_search.search_space import SearchSpace


def test_the_quickstart() -> None:
    recipe = StudyRecipe.load("quickstart")
    assert (recipe.model, recipe.calibration, recipe.space) == ("testbed", "testbed", "vflowopt")
    assert (recipe.retain, recipe.trials, recipe.samples, recipe.seed) == (0.1, 400, 256, 0)
    assert recipe.metric == "total_variation"


def test_every_shipped_recipe_names_a_space_that_exists() -> None:
    names = [file.stem for file in studies_folder().glob("*.yaml")]
    assert "quickstart" in names
    for name in names:
        SearchSpace.load(StudyRecipe.load(name).space)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"format": "vflowopt-study/2"},
            r"`format` is 'vflowopt-study/2' but must be 'vflowopt-st",
        ),
        ({"retain": 1.5}, r"`retain` is 1\.5 but must be less than or equal to 1; correct it"),
        ({"retain": "10%"}, r"`retain` is '10%' but must be a valid number; correct it"),
        ({"trials": 0}, r"`trials` is 0 but must be greater than or equal to 1; correct it"),
        ({"metric": "l2"}, r"`metric` is 'l2' but must be 'last_token_cosine', 'flow'.*; correct"),
        ({"budget": 0.1}, r"`budget` is not a known field; remove or correct it"),
        ({"space": ""}, r"`space` is '' but must have at least 1 character; correct it"),
    ],
)
def test_a_wrong_recipe_is_refused(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    content = yaml.safe_load((studies_folder() / "quickstart.yaml").read_text()) | changes
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(SearchSpaceError, match=sentence) as refused:
        StudyRecipe.load(file)
    assert str(refused.value).startswith(f"{file}: ")


def test_a_recipe_needs_no_description(tmp_path: Path) -> None:
    content = yaml.safe_load((studies_folder() / "quickstart.yaml").read_text())
    del content["description"]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    assert StudyRecipe.load(tmp_path / "mine.yaml").trials == 400


def test_an_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(SearchSpaceError, match=r"'slow' is neither a shipped name \(quickstart"):
        StudyRecipe.load("slow")


def test_a_file_beside_the_reader_is_not_taken_for_a_shipped_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "quickstart").write_text("not: a recipe")
    monkeypatch.chdir(tmp_path)
    assert StudyRecipe.load("quickstart").model == "testbed"
    with pytest.raises(SearchSpaceError, match=r"quickstart: `format` is missing; add it"):
        StudyRecipe.load("./quickstart")


@pytest.mark.parametrize("wheel", [True, False])
def test_shipped_folders_are_found_in_a_wheel_and_in_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wheel: bool
) -> None:
    package = tmp_path / "vflowopt_search"
    home = package / "data" if wheel else tmp_path
    for name in ("search_spaces", "studies"):
        (home / name).mkdir(parents=True)
    monkeypatch.setattr(resources, "_PACKAGE", package)
    assert search_spaces_folder() == home / "search_spaces"
    assert studies_folder() == home / "studies"


def test_a_broken_installation_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "_PACKAGE", tmp_path / "vflowopt_search")
    with pytest.raises(VFlowOptError, match=r"'studies' .* is not in .*; install the package agai"):
        studies_folder()
