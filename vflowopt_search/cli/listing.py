"""`models` and `spaces`: what can be pruned and what can be searched."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from vflowopt_search.cli.console import print_json, stdout, table
from vflowopt_search.cli.options import Json

if TYPE_CHECKING:
    from vflowopt_search.adapters.base import Family

WIDE = 140  # characters in which five columns of words can be read
COLUMNS = ("family", "inputs", "positions", "importance scores", "limits")


Refused = Annotated[
    bool, typer.Option("--refused", help="List those that cannot be pruned instead, and why.")
]


def models(refused: Refused = False, as_json: Json = False) -> None:
    """List the model families that can be searched and pruned, and the limits of each.

    Example: vflowopt-search models
    """
    from vflowopt_search.adapters.generic import GenericAdapter
    from vflowopt_search.adapters.registry import families
    from vflowopt_search.adapters.unsupported import UNSUPPORTED

    if refused and as_json:
        print_json([{"model_type": name, "reason": why} for name, why in UNSUPPORTED.items()])
        return
    if refused:
        stdout().print(table(("family", "why it cannot be pruned"), list(UNSUPPORTED.items())))
        return
    listed = [*families(), GenericAdapter.family]
    if as_json:
        print_json([asdict(family) for family in listed])
        return
    console = stdout()
    rows = [_cells(family) for family in listed]
    if console.width >= WIDE:
        console.print(table(COLUMNS, rows))
        return
    stacked = [
        (cells[0], "\n".join(f"{name}: {cell}" for name, cell in _named(cells))) for cells in rows
    ]
    console.print(table((COLUMNS[0], ", ".join(COLUMNS[1:])), stacked))


def spaces(as_json: Json = False) -> None:
    """List the bundled search spaces.

    Example: vflowopt-search search --space keep-ratios-only
    """
    from vflowopt_search.search_space import list_spaces

    known = list_spaces()
    if as_json:
        print_json([{"name": name, "description": about} for name, about in known])
        return
    stdout().print(table(("space", "what it searches"), known))


def _cells(family: Family) -> tuple[str, ...]:
    lists = (family.inputs, family.positions, family.scores)
    return (family.model_type, *(", ".join(each) for each in lists), family.limits)


def _named(cells: tuple[str, ...]) -> list[tuple[str, str]]:
    """The cells after the first that say something, each with its column."""
    return [(name, cell) for name, cell in zip(COLUMNS[1:], cells[1:], strict=True) if cell]
