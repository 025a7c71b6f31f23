"""`models` and `spaces`: what can be pruned and what can be searched."""

from __future__ import annotations

from vflowopt_search.cli.console import print_json, stdout, table
from vflowopt_search.cli.options import Json


def models(as_json: Json = False) -> None:
    """List the model families that can be searched and pruned.

    Example: vflowopt-search models
    """
    from dataclasses import asdict

    from vflowopt_search.adapters.registry import families

    records = [asdict(family) for family in families()]
    if as_json:
        print_json(records)
        return
    rows = [[_cell(value) for value in record.values()] for record in records]
    stdout().print(table([name.replace("_", " ") for name in records[0]], rows))


def spaces(as_json: Json = False) -> None:
    """List the search spaces that come with the package.

    Example: vflowopt-search search --space keep-ratios-only
    """
    from vflowopt_search.search_space import list_spaces

    known = list_spaces()
    if as_json:
        print_json([{"name": name, "description": about} for name, about in known])
        return
    stdout().print(table(("space", "what it searches"), known))


def _cell(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
