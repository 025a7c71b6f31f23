"""Options of the commands that ask labelled questions, `evaluate` and `validate`."""

from __future__ import annotations

from typing import Annotated

import typer

from vflowopt_search.cli import options, typed

_LABELLED = "Labelled data"

Data = Annotated[
    str | None,
    typer.Option(
        help="Hub dataset, folder, JSON, JSONL or Parquet. Default for `testbed`: the bundled "
        "questions.",
        rich_help_panel=_LABELLED,
    ),
]
Questions = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Number of labelled samples. Default: 1000, of the bundled questions all 1200.",
        rich_help_panel=_LABELLED,
    ),
]
OldQuestions = Annotated[
    int | None,
    typer.Option("--samples", min=1, hidden=True, help="Old name of --questions. Default: none."),
]
By = Annotated[
    str | None,
    typer.Option(
        help="Column by whose values results are broken down. Default: guessed.",
        rich_help_panel=_LABELLED,
    ),
]
Instruction = Annotated[
    str | None,
    typer.Option(
        help='Added below every question, as "Answer with a single word.". Default: nothing.',
        rich_help_panel=_LABELLED,
    ),
]
Score = Annotated[
    options.ScoreName,
    typer.Option(
        "--metric",
        metavar="NAME",
        help=f"How answers are scored: {options.names_of(options.ScoreName)}.",
    ),
]
NewTokens = Annotated[int, typer.Option(min=1, help="Answer at most this many tokens.")]
Split = Annotated[
    str | None, typer.Option("--split", help=options.SPLIT_HELP, rich_help_panel=_LABELLED)
]
Columns = Annotated[
    str | None,
    typer.Option(
        "--columns",
        help="As image=picture,prompt=question; answer, options, id, group and video, too. "
        "Default: guessed.",
        rich_help_panel=_LABELLED,
    ),
]
Prompt = Annotated[
    str | None, typer.Option("--prompt", help=options.PROMPT_HELP, rich_help_panel=_LABELLED)
]
VideoColumn = Annotated[
    str | None, typer.Option("--video-column", help=options.VIDEO_HELP, rich_help_panel=_LABELLED)
]
Turns = Annotated[
    options.Turns, typer.Option("--turns", help=options.TURNS_HELP, rich_help_panel=_LABELLED)
]
Strict = Annotated[
    bool, typer.Option("--strict", help=options.STRICT_HELP, rich_help_panel=_LABELLED)
]
Frames = Annotated[
    int | None, typer.Option("--frames", min=1, help=options.FRAMES_HELP, rich_help_panel=_LABELLED)
]
Fps = Annotated[
    float | None,
    typer.Option(
        "--fps", callback=typed.above_zero, help=options.FPS_HELP, rich_help_panel=_LABELLED
    ),
]


def num_questions(typed: int | None, by_old_name: int | None) -> int | None:
    """How many questions were asked for, by either name.

    Raises:
        typer.BadParameter: by both.
    """
    if typed is not None and by_old_name is not None:
        raise typer.BadParameter(
            "it is the old name of --questions; give one of the two", param_hint="--samples"
        )
    return by_old_name if typed is None else typed
