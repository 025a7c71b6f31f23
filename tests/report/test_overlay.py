"""Overlay records survive their file, and their pictures show what they say."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.examples import full_strategy
from tests.report.overlays import BLUE, RED, fake_overlays, two_by_three
from vflowopt_search.errors import StudyError
from vflowopt_search.report.overlay import Panel, panel_size, sample_panels, sheet, view_panels
from vflowopt_search.report.overlay_record import (
    FILE,
    View,
    encoded,
    fingerprint,
    load_overlays,
    save_overlays,
)
from vflowopt_search.strategy import Recycling

STAGES = (0, 2, 3)


def cell_colour(image: Image.Image, row: int, col: int) -> NDArray[np.float64]:
    """Colour in the middle of a cell of two rows and three columns."""
    pixels = np.asarray(image, dtype=np.float64)
    height, width = pixels.shape[:2]
    colour: NDArray[np.float64] = pixels[(2 * row + 1) * height // 4, (2 * col + 1) * width // 6]
    return colour


def test_a_record_comes_back_from_its_folder(tmp_path: Path) -> None:
    written = fake_overlays(full_strategy(), tmp_path / "overlays")
    assert load_overlays(tmp_path / "overlays") == written
    assert load_overlays(tmp_path) is None
    assert written.samples[0].mean_retained == pytest.approx((4 + 4 + 2 + 1) / 4 / 6)


def test_writing_again_leaves_no_picture_of_before(tmp_path: Path) -> None:
    fake_overlays(full_strategy(), tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    name, content = encoded(Image.new("RGB", (9, 9), "green"), 384)
    record = load_overlays(tmp_path)
    assert record is not None
    save_overlays(record, {name: content}, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {FILE, name}
    assert name not in before


def test_the_fingerprint_is_of_what_a_strategy_does() -> None:
    strategy = full_strategy()
    renamed = strategy.model_copy(update={"name": "other", "provenance": None, "budget": None})
    assert fingerprint(renamed) == fingerprint(strategy)
    changed = strategy.model_copy(update={"recycling": Recycling(cell=5.0)})
    assert fingerprint(changed) != fingerprint(strategy)


def test_a_view_with_too_few_values_is_refused() -> None:
    with pytest.raises(StudyError, match="survived has 6 values for 3 x 3 cells"):
        View(**{**two_by_three(None).model_dump(), "rows": 3})


def test_large_pictures_are_shrunk_and_small_ones_left() -> None:
    def size(side: int) -> tuple[int, int]:
        picture = Image.new("RGB", (side, side // 2), "red")
        return Image.open(BytesIO(encoded(picture, 100)[1])).size

    assert size(400) == (100, 50)
    assert size(60) == (60, 30)


def test_a_stage_panel_is_bright_where_tokens_are_alive() -> None:
    picture = Image.new("RGB", (90, 60), RED)
    panels = view_panels(two_by_three("x"), picture, STAGES)
    captions = [panel.caption for panel in panels]
    assert captions[:4] == [
        "the image, 2 x 3 tokens",
        "layers 0 to 1: 3 of 5 tokens",
        "layer 2: 2 of 5 tokens",
        "from layer 3 on: 1 of 5 tokens",
    ]
    survived = two_by_three("x").survived
    for stage, panel in enumerate(panels[1:4], start=1):
        for cell, stages in enumerate(survived):
            colour = cell_colour(panel.image, *divmod(cell, 3))
            assert np.allclose(colour, RED) == (stages >= stage), (stage, cell)


def test_stages_that_drop_nothing_of_a_view_share_the_panel_before() -> None:
    """A view that is empty early is shown empty once."""
    emptied = two_by_three("x").model_copy(update={"survived": (1, 1, 1, 0, 0, -1)})
    captions = [p.caption for p in view_panels(emptied, None, (0, 2, 3)) if "layer" in p.caption]
    assert captions == ["layers 0 to 1: 3 of 5 tokens", "from layer 2 on: 0 of 5 tokens"]
    whole = two_by_three("x").model_copy(update={"survived": (3, 3, 3, 3, 3, -1)})
    captions = [p.caption for p in view_panels(whole, None, (1, 2, 3)) if "layer" in p.caption]
    assert captions == ["from layer 1 on: 5 of 5 tokens"]


def test_views_are_told_apart_by_what_they_are() -> None:
    view = two_by_three("x").model_copy(update={"name": "high-resolution mosaic"})
    picture = Image.new("RGB", (90, 60), RED)
    assert view_panels(view, picture, STAGES)[0].caption == "high-resolution mosaic, 2 x 3 tokens"


def test_dropped_tokens_are_grey_and_not_black() -> None:
    [panel] = view_panels(two_by_three("x"), Image.new("RGB", (90, 60), RED), STAGES)[3:4]
    gone = cell_colour(panel.image, 0, 0)
    assert np.ptp(gone) < 25 and gone.min() > 60


def test_captions_of_a_sheet_stay_within_their_panels() -> None:
    long = Panel("high-resolution mosaic, 14 x 14 tokens", Image.new("RGB", (240, 100), "red"))
    short = sheet([Panel("short", long.image)] * 2)
    both = sheet([long, Panel("short", long.image)])
    assert both.width == short.width and both.height > short.height
    seen = np.asarray(both)[:-120, 250:260]  # between the panels
    assert (seen == 255).all()


def test_merged_tokens_share_a_colour_and_their_anchor_is_outlined() -> None:
    panels = view_panels(two_by_three("x"), Image.new("RGB", (90, 60), BLUE), STAGES)
    [panel] = [panel for panel in panels if panel.caption.startswith("recycled")]
    merged = [cell_colour(panel.image, *divmod(cell, 3)) for cell in range(6)]
    assert np.allclose(merged[1], merged[2])
    assert not np.allclose(merged[1], merged[0])
    assert np.allclose(merged[0], merged[3]) and np.ptp(merged[0]) == 0  # grey: not merged
    corner = np.asarray(panel.image)[1, -2]
    assert tuple(corner) == (249, 115, 22)


def test_the_picture_of_the_readme_has_the_colours_of_the_report() -> None:
    """An outline keeps its orange; few of its pixels would be lost where colours are reduced."""
    with Image.open(Path(__file__).parents[2] / "docs" / "overlay.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert (pixels == (249, 115, 22)).all(axis=1).sum() > 50


def test_a_map_goes_from_dark_to_bright_and_leaves_out_what_has_no_value() -> None:
    panels = view_panels(two_by_three(None), None, STAGES)
    [heat] = [panel for panel in panels if panel.caption.startswith("importance")]
    assert heat.caption == "importance (0 to 1)"
    brightness = [cell_colour(heat.image, *divmod(cell, 3)).sum() for cell in range(5)]
    assert brightness == sorted(brightness) and brightness[0] < brightness[4]
    assert tuple(cell_colour(heat.image, 1, 2)) == (40, 46, 56)


def test_without_a_picture_there_are_tokens_all_the_same() -> None:
    panels = view_panels(two_by_three(None), None, STAGES)
    assert panels[0].caption.startswith("layers 0 to 1")
    assert panels[0].image.size == panel_size(two_by_three(None), None) == (240, 160)


def test_every_token_has_room_in_a_panel() -> None:
    many = 400
    view = View(
        rows=2,
        cols=many,
        picture=None,
        survived=(1,) * 2 * many,
        group=(-1,) * 2 * many,
        anchors=(),
        importance=None,
        entropy=None,
    )
    assert panel_size(view, None)[0] >= 4 * many


def test_the_panels_of_a_sample_come_from_its_folder(tmp_path: Path) -> None:
    record = fake_overlays(full_strategy(), tmp_path)
    views = sample_panels(record, record.samples[1], tmp_path)
    assert len(views) == 2
    assert np.allclose(cell_colour(views[0][0].image, 0, 0), BLUE, atol=4)  # WebP
    assert not views[1][0].caption.startswith("the image")
    (tmp_path / str(record.samples[1].views[0].picture)).unlink()
    gone = sample_panels(record, record.samples[1], tmp_path)
    assert not gone[0][0].caption.startswith("the image")
    whole = sheet(views[0], columns=3)
    assert whole.width > 3 * views[0][0].image.width
