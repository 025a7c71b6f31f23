"""What is typed: the limits of values, and one clear sentence for one that is wrong."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from math import isfinite
from typing import Any

import typer
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from typer.core import TyperCommand

_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


class Command(TyperCommand):
    """A command that refuses empty values, and says in our words what is wrong with one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read what was typed.

        Raises:
            typer.BadParameter: a value is empty or breaks a rule.
        """
        refuse_empty(args, _valued(self.get_params(ctx)), ctx)
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            if isinstance(error.__cause__, ValidationError):  # typer repeats pydantic's sentence
                error.message = sentence(error.__cause__)
            raise


def paragraphs(command: Callable[..., None]) -> str:
    r"""What the docstring says, each paragraph on one line: the terminal's width breaks it.

    A line that ends with a backslash is one of a shell, and stays.
    """
    return re.sub(r"(?<![\\\n])\n(?!\n)", " ", inspect.getdoc(command) or "")


def refuse_empty(args: list[str], valued: frozenset[str], ctx: Any = None) -> None:
    """Refuse `--output ""`: mostly a shell variable that was never set.

    Args:
        args: what was typed after the command.
        valued: names of the options that take a value.
        ctx: of the command, whose usage is then shown.

    Raises:
        typer.BadParameter: names the option.
    """
    for before, one in zip(["", *args], args, strict=False):
        option, equals, value = one.partition("=")
        if not one.strip():
            option = before
        elif option not in valued or not equals or value.strip():
            continue
        named = option if option in valued else "an argument"
        raise typer.BadParameter(
            "it is empty; give it a value, or leave it out", ctx=ctx, param_hint=named
        )


def sentence(error: ValidationError) -> str:
    """Value, rule and way out of the first thing that is wrong."""
    first = error.errors()[0]
    if first["type"] == "value_error":
        told = first["msg"].removeprefix("Value error, ").removesuffix(".")
        return f"{told}; give one of these" if " is not one of " in told else told
    return f"{first['input']!r} {_rule(first)}"


def share(value: float | None) -> float | None:
    """A share of the visual tokens: above 0, at most 1.

    Raises:
        typer.BadParameter: any other number.
    """
    if value is not None and not 0 < value <= 1:
        raise typer.BadParameter(
            f"{value:g} is no share of the visual tokens; give a number above 0 and up to 1, "
            "as 0.10 for a tenth"
        )
    return value


def searched_share(value: float | None) -> float | None:
    """A share that leaves something to search for: above 0 and below 1.

    Raises:
        typer.BadParameter: any other number.
    """
    if value == 1:
        raise typer.BadParameter(
            "1 keeps everything: nothing to search; give a share below 1, as 0.10 for a tenth"
        )
    return share(value)


def above_zero(value: float | None) -> float | None:
    """A finite number above 0.

    Raises:
        typer.BadParameter: any other number.
    """
    if value is not None and not (value > 0 and isfinite(value)):
        raise typer.BadParameter(f"{value:g} is not a number above 0; give one, as 2 or 0.5")
    return value


def device(value: str) -> str:
    """A device by name; whether it is there is found out when a model is loaded.

    Raises:
        typer.BadParameter: no device that is supported is called so.
    """
    if _DEVICE.fullmatch(value) is None:
        raise typer.BadParameter(
            f"{value!r} is no device that models run on here; give auto, cpu, cuda or cuda:1"
        )
    return value


def database(value: str | None) -> str | None:
    """A database URL.

    Raises:
        typer.BadParameter: it does not look like one.
    """
    if value is not None and not re.match(r"\w[\w+]*://", value):
        raise typer.BadParameter(f"{value!r} is no database URL; give one, as sqlite:///study.db")
    return value


def _rule(error: ErrorDetails) -> str:
    limits = error.get("ctx", {})
    match error["type"]:
        case "greater_than_equal":
            return f"is too low; give {limits['ge']} or more"
        case "less_than_equal":
            return f"is too high; give {limits['le']} or less"
        case "int_parsing" | "int_from_float":
            return "is not a whole number; give one, as 8"
        case "float_parsing":
            return "is not a number; give one, as 0.5"
    rule = error["msg"].replace("Input should", "must")
    return f"cannot be used: {rule[0].lower()}{rule[1:]}; correct it"


def _valued(params: list[Any]) -> frozenset[str]:
    """Names of the options that take a value."""
    options = [one for one in params if one.param_type_name == "option"]
    return frozenset(name for one in options if not one.is_flag for name in one.opts)
