"""Colours, dashes and widths of the figures: each can be told from the others on both papers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

BLUE, ORANGE, GREY = "#3b82f6", "#ea580c", "#7d8797"
"""Colours that stand out (3 to 1) from the light and from the dark paper."""
OTHERS = ("#0d9488", "#a855f7", "#a16207", "#db2777", "#4d7c0f", "#64748b")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
_WIDEST, _WIDE, _NARROWEST, _STEP = 5.0, 3.1, 1.6, 0.3  # pixels


def line_style(place: int) -> dict[str, Any]:
    """How the line at a place is drawn: wide and whole below, narrow and broken above.

    Lines that are drawn in this order over each other still all show.
    """
    colours = (ORANGE, BLUE, *OTHERS)
    return {
        "color": colours[place % len(colours)],
        "dash": DASHES[place % len(DASHES)],
        "width": _WIDEST if place == 0 else max(_NARROWEST, _WIDE - _STEP * place),
    }


def coinciding(lines: dict[str, list[float]]) -> dict[str, list[float]]:
    """The same lines, where equal ones are one line that bears all their names."""
    names: dict[tuple[float, ...], list[str]] = {}
    for name, values in lines.items():
        names.setdefault(tuple(round(value, _DIGITS) for value in values), []).append(name)
    return {", ".join(called): lines[called[0]] for called in names.values()}


_DIGITS = 9
"""Shares that agree to so many digits are equal; the rest is rounding."""


def in_lines(name: str, most: int = 30) -> str:
    """A name that fits a phone's legend: broken after commas and spaces, at the latest at `most`.

    A word that is longer alone is shortened in its middle.
    """
    lines, line = [], ""
    for word in name.split(" "):
        short = word if len(word) <= most else f"{word[: most // 2]}…{word[1 - most // 2 :]}"
        joined = f"{line} {short}".strip()
        if line and len(joined) > most:
            lines.append(line)
            joined = short
        line = joined
    return "<br>".join([*lines, line])


def described(figure: Any, words: Sequence[str]) -> None:
    """Give a figure the sentence that stands for it where it is not seen."""
    figure.update_layout(meta={"alt": " ".join(words)})
