"""Ctrl-C in a command whose work is kept as it is done."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from vflowopt_search.database_url import HIDDEN, shown_words

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


@contextmanager
def resumable(kept: str) -> Iterator[None]:
    """Say after Ctrl-C what is `kept` and how to go on, and end with exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"interrupted; {kept}. Go on with:\n  {typed_again()}", err=True)
        raise typer.Exit(INTERRUPTED) from None


def typed_again() -> str:
    """The command that was typed, which goes on where it stopped; passwords are not shown."""
    words = shown_words(sys.argv[1:])
    command = shlex.join(["vflowopt-search", *words])
    hidden = words != sys.argv[1:]
    return f"{command}  (with the database's password in place of {HIDDEN})" if hidden else command
