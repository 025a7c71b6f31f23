"""The model that a strategy is tried on: the one that was typed, else the one that it names."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vflowopt_search.model_source import random_config

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Hub name, folder, or `testbed`. Default: the strategy's.",
        show_default=False,
    ),
]


def chosen_model(typed: str | None, named: str | None) -> str:
    """The model that was typed, else the one that the strategies name.

    Raises:
        typer.BadParameter: neither is there, or the named one had random weights.
    """
    name = typed or named
    if name is None:
        raise typer.BadParameter(
            "no strategy names a model; give a hub name, a folder, or `testbed`",
            param_hint="--model",
        )
    if typed is None and random_config(name) is not None:
        raise typer.BadParameter(
            f"the strategy was found on {name}, which has no weights to answer with; name a "
            "checkpoint of that shape",
            param_hint="--model",
        )
    return name


def chosen_weights(
    typed: str | None, random_init: Path | None, named: str | None
) -> tuple[str | None, Path | None]:
    """What was typed, else what the strategy names: a model, or a configuration without weights.

    Raises:
        typer.BadParameter: none of them is there.
    """
    if typed is not None or random_init is not None:
        return typed, random_init
    if named is not None and (config := random_config(named)) is not None:
        return None, config
    if named is None:
        raise typer.BadParameter(
            "the strategy names no model; name one, or give a configuration with --random-init",
            param_hint="--model",
        )
    return named, None
