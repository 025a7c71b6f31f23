"""What people see: consoles for both streams, tables, machine-readable output, quiet libraries."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

_WIDTH_OFF_TERMINAL = 110  # characters; rich would take 80 and break our tables


def stdout() -> Console:
    """Where results go."""
    return _console(stderr=False)


def stderr() -> Console:
    """Where progress and complaints go."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _WIDTH_OFF_TERMINAL
    return console


def complain(sentence: str) -> None:
    """Print one sentence about what went wrong, unbroken, on stderr."""
    typer.secho("error: ", fg="red", bold=True, err=True, nl=False)
    typer.echo(sentence, err=True)


def print_json(content: Any) -> None:
    """Print the one JSON document that a script reads, on stdout."""
    typer.echo(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False))


def interval(low: float, high: float, form: str) -> str:
    """`93.1% to 97.2%`: two figures that enclose others, the same everywhere.

    Args:
        low: the lower one.
        high: the higher one.
        form: how one is printed, as `.1%`.
    """
    return f"{low:{form}} to {high:{form}}"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A plain table; columns are set to the right when they hold numbers or intervals.

    Headings may have several lines; those that have fewer stand at the bottom.
    """
    cells = [list(row) for row in rows]
    height = max((column.count("\n") for column in columns), default=0)
    result = Table(box=None, pad_edge=False, show_header=any(columns))
    for index, column in enumerate(columns):
        numbers = bool(cells) and all(_is_number(row[index]) for row in cells)
        heading = "\n" * (height - column.count("\n")) + column
        result.add_column(heading, justify="right" if numbers else "left", overflow="fold")
    for row in cells:
        result.add_row(*row)
    return result


def legend(lines: Iterable[str]) -> Text:
    """What stands below a table: a line for each mark and figure that needs words."""
    return Text("\n".join(lines), style="dim")


def _is_number(cell: str) -> bool:
    return all(part == "to" or part.strip("-+%.<*0123456789sx") == "" for part in cell.split())


def quiet_libraries() -> None:
    """Let libraries speak up only about what a user of the command line can act on."""
    # Read by the libraries when they are imported, which happens later and only where needed.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DATASETS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("optuna").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"(optuna|transformers|datasets|torch)(\.|$)")


def quiet_progress_bars() -> None:
    """Switch off the bars that libraries draw over ours; imports transformers."""
    from transformers.utils import logging as transformers_logging

    disable: Callable[[], None] = transformers_logging.disable_progress_bar
    disable()
