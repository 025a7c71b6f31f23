"""Small pieces of HTML; whatever text they are given is escaped."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from io import BytesIO

from PIL import Image

from vflowopt_search.report import words

_UNBROKEN = 30
"""A word of a command that has fewer letters fits every screen whole."""


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """A list of names and values."""
    cells = (
        f"<tr><th scope='row'>{escape(name)}</th><td>{escape(v)}</td></tr>" for name, v in rows
    )
    return f"<table class='facts'>{''.join(cells)}</table>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with a head; on a narrow screen every row becomes a card of named cells."""
    names = "".join(f"<th scope='col'>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{_cells(head, row)}</tr>" for row in rows)
    return f"<table class='grid'><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>"


def _cells(head: Sequence[str], row: Sequence[str]) -> str:
    return "".join(
        f"<td data-name='{escape(name)}'>{escape(cell) or '&ndash;'}</td>"
        for name, cell in zip(head, row, strict=True)
    )


def tiles(values: Iterable[tuple[str, str, str]]) -> str:
    """Numbers in large, each with what it is and a remark."""
    cells = "".join(
        f"<div class='tile'><b>{escape(value)}</b><span>{escape(name)}</span>"
        f"<small>{escape(remark)}</small></div>"
        for value, name, remark in values
    )
    return f"<div class='tiles'>{cells}</div>" if cells else ""


def code(text: str) -> str:
    """A command to copy; it breaks between its words, not within an option."""
    words = " ".join(
        f"<span>{escape(word)}</span>" if len(word) < _UNBROKEN else escape(word)
        for word in text.split(" ")
    )
    return f"<pre class='code'><code>{words}</code></pre>"


def remarks(rows: Iterable[tuple[str, str, str]]) -> str:
    """Headings, each with a sentence and a command, which may be empty."""
    return "".join(
        f"<h3>{escape(name)}</h3><p class='label'>{escape(why)}</p>"
        f"{code(command) if command else ''}"
        for name, why, command in rows
    )


def picture(image: Image.Image, alt: str) -> str:
    """An image that carries its own bytes."""
    buffer = BytesIO()
    image.save(buffer, "WEBP", quality=80, method=4)
    return picture_of(buffer.getvalue(), alt, image.width, image.height)


def picture_of(webp: bytes, alt: str, width: int, height: int) -> str:
    """The same of an encoded image."""
    data = b64encode(webp).decode("ascii")
    return (
        f"<img alt='{escape(alt)}' width='{width}' height='{height}' "
        f"src='data:image/webp;base64,{data}'>"
    )


def filled(columns: Mapping[str, Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table, without columns that nothing fills."""
    filled = {name: cells for name, cells in columns.items() if any(cells)}
    return list(filled), [list(row) for row in zip(*filled.values(), strict=True)]


def percent(share: float | None) -> str:
    """A share; nothing where there is none."""
    return "" if share is None else f"{share:.1%}"


def span(ends: tuple[float, float] | None) -> str:
    """Two shares and all between them; nothing where there are none."""
    return "" if ends is None else f"{ends[0]:.1%} to {ends[1]:.1%}"


def number(value: float | None) -> str:
    """A measurement with four digits; nothing where there is none."""
    return "" if value is None else f"{value:.4g}"


def speed_up(ratio: float | None) -> str:
    """How many times as fast; nothing where it was not measured."""
    return "" if ratio is None else f"{ratio:.2f} x"


def size(count: float | None) -> str:
    """So many bytes; nothing where it is not known."""
    return "" if count is None else words.size(count)
