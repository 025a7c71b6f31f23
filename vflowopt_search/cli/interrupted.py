"""Ctrl-C in a command whose work is kept as it is done."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


@contextmanager
def resumable(kept: str) -> Iterator[None]:
    """Say after Ctrl-C what is `kept` and how to go on, and end with exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        command = shlex.join(["vflowopt-search", *sys.argv[1:]])
        typer.echo(f"interrupted; {kept}. Go on with:\n  {command}", err=True)
        raise typer.Exit(INTERRUPTED) from None
