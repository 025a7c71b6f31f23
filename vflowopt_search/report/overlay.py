"""Overlay records as pictures: what each stage keeps, and the maps behind the choice.

Shape suffixes: H, W = pixels, C = colour channels; cells are in raster order.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import plotly.colors
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vflowopt_search.report.overlay_record import (
    NO_TOKEN,
    NOT_MERGED,
    Overlays,
    SampleOverlay,
    View,
)

PANEL_SIDE = 240  # pixels
_CELL_PIXELS = 4
"""A panel is never so small that a token has fewer pixels a side."""
_GONE, _VEIL = 0.4, (66, 74, 86)
"""How much of a picture is left to see where its token is gone, and what lies over it."""
_TINT = 0.55
_GOLDEN = 0.6180339887498949
_BACKGROUND = (40, 46, 56)
_NO_PICTURE = (176, 184, 194)
_OUTLINE = (249, 115, 22)
_INK = (31, 41, 51)
_SCALE = "Viridis"
_GAP, _CAPTION_PIXELS, _TITLE_PIXELS = 10, 22, 28
_FONT, _TITLE_FONT = 15, 19

Pixels = NDArray[np.float64]


@dataclass(frozen=True)
class Panel:
    """One picture of a view, and what it shows in words."""

    caption: str
    image: Image.Image


def sample_panels(overlays: Overlays, sample: SampleOverlay, folder: Path) -> list[list[Panel]]:
    """For each view of a sample its picture, one panel per stage, and the maps there are.

    Args:
        overlays: the record.
        sample: one of its samples.
        folder: where its pictures are.
    """
    return [
        view_panels(view, opened(folder, view.picture), overlays.stages) for view in sample.views
    ]


def view_panels(view: View, picture: Image.Image | None, stages: Sequence[int]) -> list[Panel]:
    """The panels of one view, side by side; stages that keep the same tokens share one."""
    size = panel_size(view, picture)
    base_HWC = _base(picture, size)
    name = f"{view.name or 'the image'}, {view.rows} x {view.cols} tokens"
    panels = [] if picture is None else [Panel(name, _image(base_HWC))]
    tokens = sum(survived != NO_TOKEN for survived in view.survived)
    for number, layers in _distinct(view, stages):
        alive = sum(survived >= number for survived in view.survived)
        caption = f"{layers}: {alive} of {tokens} tokens"
        panels.append(Panel(caption, _alive(view, base_HWC, number)))
    if any(group != NOT_MERGED for group in view.group):
        panels.append(Panel("recycled: one colour is one token", _merged(view, base_HWC)))
    for caption, values in (("importance", view.importance), ("entropy, bits", view.entropy)):
        if values is not None and any(value is not None for value in values):
            low, high = _range(values)
            panels.append(Panel(f"{caption} ({low:.2g} to {high:.2g})", _heat(view, values, size)))
    return panels


def _distinct(view: View, stages: Sequence[int]) -> list[tuple[int, str]]:
    """The stages that drop tokens of the view, and the layers up to the next of them, in words.

    The first stage is always there, so that a view of which nothing is dropped has a panel too.
    """
    numbers = [1] + [n for n in range(2, len(stages) + 1) if n - 1 in view.survived]
    found = []
    for number, following in zip_longest(numbers, numbers[1:]):
        first = stages[number - 1]
        if following is None:
            layers = f"from layer {first} on"
        else:
            last = stages[following - 1] - 1
            layers = f"layer {first}" if first == last else f"layers {first} to {last}"
        found.append((number, layers))
    return found


def panel_size(view: View, picture: Image.Image | None) -> tuple[int, int]:
    """Width and height of a view's panels: the picture's shape, and room for every token."""
    ratio = view.cols / view.rows if picture is None else picture.width / picture.height
    width, height = (PANEL_SIDE, PANEL_SIDE / ratio) if ratio > 1 else (PANEL_SIDE * ratio, None)
    height = PANEL_SIDE if height is None else height
    grow = max(1.0, _CELL_PIXELS * view.cols / width, _CELL_PIXELS * view.rows / height)
    return max(1, round(width * grow)), max(1, round(height * grow))


def sheet(panels: Sequence[Panel], columns: int = 4, title: str = "") -> Image.Image:
    """Panels of one view in rows, as one picture for places that show no page."""
    width, height = panels[0].image.size
    font, room = ImageFont.load_default(_FONT), max(width, PANEL_SIDE)
    captions = [_wrapped(panel.caption, font, room) for panel in panels]
    caption_pixels = _CAPTION_PIXELS * max(caption.count("\n") + 1 for caption in captions)
    step = (room + _GAP, height + _GAP + caption_pixels)
    rows = -(-len(panels) // columns)
    head = _TITLE_PIXELS if title else 0
    size = (step[0] * min(columns, len(panels)) + _GAP, step[1] * rows + _GAP + head)
    whole = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(whole)
    draw.text((_GAP, _GAP), title, fill=_INK, font=ImageFont.load_default(_TITLE_FONT))
    for number, (panel, caption) in enumerate(zip(panels, captions, strict=True)):
        row, column = divmod(number, columns)
        left, top = _GAP + column * step[0], _GAP + head + row * step[1]
        room_above = caption_pixels - _CAPTION_PIXELS * (caption.count("\n") + 1)
        draw.text((left, top + room_above), caption, fill=_INK, font=font)
        whole.paste(panel.image, (left, top + caption_pixels))
    return whole


def _wrapped(caption: str, font: Any, room: int) -> str:
    """A caption in as many lines as it needs to be no wider than its panel."""
    lines = [""]
    for word in caption.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > room:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)


def opened(folder: Path, name: str | None) -> Image.Image | None:
    """A recorded picture; None where there is none."""
    if name is None or not (folder / name).is_file():
        return None
    with Image.open(folder / name) as picture:
        return picture.convert("RGB")


def _base(picture: Image.Image | None, size: tuple[int, int]) -> Pixels:
    if picture is None:
        return np.full((size[1], size[0], 3), _NO_PICTURE, dtype=np.float64)
    return np.asarray(picture.resize(size, Image.Resampling.BICUBIC), dtype=np.float64)


def _cells(view: View, base_HWC: Pixels) -> NDArray[np.intp]:
    """The cell of every pixel."""
    height, width = base_HWC.shape[:2]
    row_H = np.arange(height) * view.rows // height
    col_W = np.arange(width) * view.cols // width
    cells_HW: NDArray[np.intp] = row_H[:, None] * view.cols + col_W[None]
    return cells_HW


def _alive(view: View, base_HWC: Pixels, stage: int) -> Image.Image:
    """The picture in colour where tokens are alive after a stage, dark and grey elsewhere."""
    alive = np.asarray(view.survived) >= stage
    grey_HW1 = base_HWC.mean(-1, keepdims=True)
    gone_HWC = grey_HW1 * _GONE + np.asarray(_VEIL) * (1 - _GONE)
    return _image(np.where(alive[_cells(view, base_HWC)][..., None], base_HWC, gone_HWC))


def _merged(view: View, base_HWC: Pixels) -> Image.Image:
    """Tokens merged into one in one colour, the token that stands for them outlined."""
    group = np.asarray(view.group)
    colours = np.asarray([_colour(number) for number in range(group.max() + 1)])
    tint = np.where(group[:, None] == NOT_MERGED, 0, colours[group])
    cells_HW = _cells(view, base_HWC)
    strength_HW1 = np.where(group == NOT_MERGED, 0.0, _TINT)[cells_HW][..., None]
    grey_HW1 = base_HWC.mean(-1, keepdims=True)
    image = _image(grey_HW1 * (1 - strength_HW1) + tint[cells_HW] * strength_HW1)
    draw, (width, height) = ImageDraw.Draw(image), image.size
    for anchor in view.anchors:
        row, col = divmod(anchor, view.cols)
        box = (
            (col * width // view.cols, row * height // view.rows),
            ((col + 1) * width // view.cols - 1, (row + 1) * height // view.rows - 1),
        )
        draw.rectangle(box, outline=_OUTLINE, width=2)
    return image


def _heat(view: View, values: Sequence[float | None], size: tuple[int, int]) -> Image.Image:
    """A map over the cells; cells without a value stay dark."""
    low, high = _range(values)
    spread = high - low or 1.0
    shares = [0.0 if value is None else (value - low) / spread for value in values]
    scale = plotly.colors.get_colorscale(_SCALE)
    colours = plotly.colors.sample_colorscale(scale, shares, colortype="tuple")
    cells_PC = 255 * np.asarray(colours)
    cells_PC[[value is None for value in values]] = _BACKGROUND
    blank_HWC = np.zeros((size[1], size[0], 3))
    return _image(cells_PC[_cells(view, blank_HWC)])


def _range(values: Sequence[float | None]) -> tuple[float, float]:
    known = [value for value in values if value is not None]
    return min(known), max(known)


def _colour(number: int) -> tuple[float, float, float]:
    """Colours that differ from those of the numbers nearby."""
    red, green, blue = colorsys.hsv_to_rgb((0.55 + number * _GOLDEN) % 1, 0.75, 0.95)
    return 255 * red, 255 * green, 255 * blue


def _image(colour_HWC: Pixels) -> Image.Image:
    return Image.fromarray(colour_HWC.round().clip(0, 255).astype(np.uint8))
