"""The published strategies that we ship hold the paper's numbers."""

from __future__ import annotations

import pytest

from vflowopt_search.budget import mean_retained
from vflowopt_search.resources import studies_folder
from vflowopt_search.strategy import Strategy

PUBLISHED = sorted((studies_folder() / "published").glob("*.json"))
PAPER = {  # algorithms 1.6: threshold, cell, keep ratios
    "0.50": (28.683047941520474, 11.756787150848968, 0.7233201448753168, 0.748747637472693, 0.487),
    "0.25": (
        34.759552803070484,
        15.580797034937687,
        0.2651026358526424,
        0.9833433139039235,
        0.8773258179532721,
    ),
    "0.10": (39.26492840997221, 17.386981849158786, 0.11661529508161146, 1.0, 0.6011),
}


@pytest.mark.parametrize("retained", PAPER)
def test_published_files_hold_the_papers_numbers_exactly(retained: str) -> None:
    file = studies_folder() / "published" / f"llava-onevision-7b-{retained}.json"
    strategy = Strategy.load(file)
    importance, recycling = strategy.importance, strategy.recycling
    assert recycling is not None
    assert strategy.budget is not None
    ratios = [stage.keep_ratio for stage in strategy.stages]
    assert (importance.context_threshold, recycling.cell, *ratios) == PAPER[retained]
    assert (importance.vision_layer, importance.entropy_weight) == (25, 0)
    assert [stage.layer for stage in strategy.stages] == [0, 9, 18]
    assert (strategy.positions, strategy.separators) == ("packed", "keep")
    assert strategy.budget.mean_retained == mean_retained(strategy.stages, 28)
    assert file.read_text(encoding="utf-8") == strategy.to_json()


def test_every_published_file_is_checked() -> None:
    assert [file.stem for file in PUBLISHED] == [f"llava-onevision-7b-{r}" for r in sorted(PAPER)]
