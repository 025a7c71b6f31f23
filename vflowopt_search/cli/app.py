"""The program `vflowopt-search`: its commands, its version, and one sentence for every error."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from vflowopt_search import __version__
from vflowopt_search.cli.apply import apply
from vflowopt_search.cli.bench import bench
from vflowopt_search.cli.console import complain, quiet_libraries
from vflowopt_search.cli.doctor import doctor
from vflowopt_search.cli.evaluate import evaluate
from vflowopt_search.cli.hub import pull, push
from vflowopt_search.cli.listing import models, spaces
from vflowopt_search.cli.report import dashboard, report
from vflowopt_search.cli.search import search
from vflowopt_search.cli.show import show
from vflowopt_search.cli.typed import Command, paragraphs
from vflowopt_search.cli.validate import validate
from vflowopt_search.errors import VFlowOptError


class OneSentenceErrors(TyperGroup):
    """Runs a command; an error of ours becomes one sentence on stderr and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except VFlowOptError as error:
            complain(str(error))
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=OneSentenceErrors,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"vflowopt-search {__version__}")
        raise typer.Exit


def program(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print and exit."),
    ] = False,
) -> None:
    """Find which visual tokens a multimodal model can drop, and deploy what was found.

    Example: [bold]vflowopt-search search[/bold] finds a strategy for the bundled small
    model, in a few minutes, offline.
    """
    quiet_libraries()


app.callback(help=paragraphs(program))(program)
for command in (
    search,
    show,
    apply,
    report,
    evaluate,
    validate,
    bench,
    dashboard,
    models,
    spaces,
    doctor,
    push,
    pull,
):
    app.command(cls=Command, help=paragraphs(command))(command)


def main() -> None:
    """Run the command line; ends the process."""
    let_idle_threads_sleep()
    app()


def let_idle_threads_sleep() -> None:
    """Let OpenMP's idle threads give up their core, unless the user says how they wait.

    On cores that other processes want too, spinning threads make everything several times slower.
    Read by libgomp when torch is imported.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")
