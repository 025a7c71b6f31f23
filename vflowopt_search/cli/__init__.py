"""The command line: each command parses, calls one function, prints."""

from __future__ import annotations

from vflowopt_search.cli.app import main

__all__ = ["main"]
