"""What lies where results go, before they are written: kept where they do not replace it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

import typer

from vflowopt_search.errors import EvaluationError

_SAME = {
    "is of another metric": ("metric",),
    "is of other data": ("data.sha256", "data.by", "calibration.sha256"),
    "is of other settings": ("format", "model", "seed", "study", "space"),
}
"""Where a result differs from the one before, and the fields that tell."""


def write_result(path: Path, content: Mapping[str, Any]) -> None:
    """Write a result; say on stderr where a former one is kept, if it is another one.

    Raises:
        EvaluationError: the file cannot be written, or the former one not be moved.
    """
    from vflowopt_search.evaluate.evaluation import write_plain

    if kept := keep_former(path, content):
        typer.echo(f"note: {kept}", err=True)
    write_plain(path, content)


def keep_former(path: Path, content: Mapping[str, Any]) -> str:
    """Move a result out of the way, unless the new one says all that it says.

    Args:
        path: where the new one will be written.
        content: what it will hold: an evaluation or a validation.

    Returns:
        Why the former one is kept, and where; empty where it is not, or there is none.

    Raises:
        EvaluationError: it cannot be moved.
    """
    try:
        why = _difference(json.loads(path.read_text("utf-8")), content)
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        why = "cannot be compared with this one"
    if not why:
        return ""
    names = (path.with_stem(f"{path.stem}-{number}") for number in count(1))
    free = next(name for name in names if not name.exists())
    try:
        path.rename(free)
    except OSError as error:
        raise EvaluationError(
            f"{path} {why} and cannot be kept as {free} ({error.strerror}); make room, or choose "
            "another folder with --output"
        ) from error
    return f"the former {path} {why}; it is kept as {free}"


def _difference(former: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """In what a former result is another one; empty where the new one has all of it."""
    for why, fields in _SAME.items():
        if any(_field(former, name) != _field(new, name) for name in fields):
            return why
    return "" if _compared(former) <= _compared(new) else "has strategies that this one lacks"


def _field(content: Mapping[str, Any], name: str) -> Any:
    """A field, or one of a field's own; None where it is not there."""
    first, _, second = name.partition(".")
    value = content.get(first)
    return value.get(second) if second and value is not None else value


def _compared(content: Mapping[str, Any]) -> set[tuple[str, str | None]]:
    """Name and fingerprint of each strategy, which a validation calls a point."""
    rows = [*content.get("strategies", ()), *content.get("points", ())]
    return {(row["name"], row.get("strategy_sha256")) for row in rows}
