"""A staircase as a small SVG picture, for places that run no script."""

from __future__ import annotations

from html import escape

from vflowopt_search.report.frames import Staircase
from vflowopt_search.report.palette import coinciding, line_style

WIDTH, HEIGHT = 640, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 14, 44
_INK, _LINE = "#334155", "#cbd5e1"
_LEGEND_PIXELS = 18
_DASHES = {
    "solid": "",
    "dash": "9 5",
    "dot": "3 3",
    "dashdot": "9 4 3 4",
    "longdash": "15 5",
    "longdashdot": "15 4 3 4",
}
"""Lengths of plotly's dashes, in pixels."""


def staircase_svg(record: Staircase) -> str:
    """The share of visual tokens alive from layer to layer, the strategy found in orange."""
    lines = coinciding(record.alive)
    height = HEIGHT + _LEGEND_PIXELS * len(lines)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        *_grid(len(record.layer)),
    ]
    for row, (name, alive) in enumerate(lines.items()):
        stroke, y = _stroke(row), HEIGHT + _LEGEND_PIXELS * row
        parts.append(_steps(alive, stroke))
        parts.append(f'<path d="M{_LEFT} {y - 4}h28" {stroke}/>')
        parts.append(f'<text x="{_LEFT + 36}" y="{y}" fill="{_INK}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>\n"])


def _stroke(place: int) -> str:
    style = line_style(place)
    dashes = _DASHES[style["dash"]]
    broken = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'stroke="{style["color"]}" stroke-width="{style["width"]:g}"{broken}'


def _grid(depth: int) -> list[str]:
    """Lines and labels of both axes."""
    parts = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = _y(share)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}" stroke="{_LINE}"/>')
        parts.append(
            f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end" fill="{_INK}">'
            f"{share:.0%}</text>"
        )
    for layer in range(0, depth + 1, max(1, depth // 10)):
        parts.append(
            f'<text x="{_x(layer, depth):.1f}" y="{_y(0) + 18:.1f}" text-anchor="middle" '
            f'fill="{_INK}">{layer}</text>'
        )
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(
        f'<text x="{middle}" y="{_y(0) + 36:.1f}" text-anchor="middle" fill="{_INK}">'
        "visual tokens kept, by decoder layer</text>"
    )
    return parts


def _steps(alive: list[float], stroke: str) -> str:
    depth = len(alive)
    moves = [f"M{_x(0, depth):.1f} {_y(alive[0]):.1f}"]
    for layer, share in enumerate(alive, start=1):
        moves.append(f"V{_y(share):.1f}H{_x(layer, depth):.1f}")
    return f'<path d="{"".join(moves)}" fill="none" {stroke}/>'


def _x(layer: float, depth: int) -> float:
    return _LEFT + (WIDTH - _RIGHT - _LEFT) * layer / max(depth, 1)


def _y(share: float) -> float:
    low = HEIGHT - _BOTTOM - _LEGEND_PIXELS
    return low - (low - _TOP) * share
