"""Figures can be read on light and dark paper, and lines over each other can be told apart."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vflowopt_search.report import palette
from vflowopt_search.report.palette import coinciding, in_lines, line_style

STYLES = Path(palette.__file__).with_name("page.css").read_text("utf-8")
PAPERS = re.findall(r"--card: (#[0-9a-f]{6})", STYLES)
NAMES = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=40)


def luminance(colour: str) -> float:
    """Of WCAG 2.2."""
    levels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in levels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(
    "colour", [palette.BLUE, palette.ORANGE, palette.GREY, *palette.OTHERS], ids=str
)
def test_every_colour_stands_out_from_every_paper(colour: str) -> None:
    assert len(set(PAPERS)) >= 2
    assert min(contrast(colour, paper) for paper in PAPERS) >= 3


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_words_can_be_read_on_their_paper(theme: str) -> None:
    [rules] = re.findall(rf'\[data-theme="{theme}"\] \{{(.*?)\}}', STYLES.split("/*")[0], re.S)
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", rules))
    for words in ("ink", "soft", "worst", "median", "best"):
        for paper in ("paper", "card"):
            assert contrast(colours[words], colours[paper]) >= 4.5, (words, paper)


def test_lines_differ_in_more_than_colour() -> None:
    styles = [line_style(place) for place in range(len(palette.DASHES))]
    assert len({style["dash"] for style in styles}) == len({s["color"] for s in styles}) == 6
    widths = [style["width"] for style in styles]
    assert widths == sorted(widths, reverse=True)


@given(st.dictionaries(NAMES, st.lists(st.sampled_from([0.1, 0.5, 1.0]), min_size=2, max_size=2)))
def test_every_line_is_drawn_once_and_every_name_told(lines: dict[str, list[float]]) -> None:
    drawn = coinciding(lines)
    assert len({tuple(values) for values in drawn.values()}) == len(drawn)
    for called, values in drawn.items():
        assert all(lines[name] == values for name in called.split(", "))
    assert sorted(", ".join(drawn).split(", ")) == sorted(lines) or not lines


@given(st.lists(NAMES, min_size=1, max_size=6), st.integers(8, 40))
def test_a_name_fits_its_room(words: list[str], most: int) -> None:
    name = " ".join(words)
    lines = in_lines(name, most).split("<br>")
    assert max(map(len, lines)) <= most
    if max(map(len, words)) <= most:
        assert " ".join(lines) == name
