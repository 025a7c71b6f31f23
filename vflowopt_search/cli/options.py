"""Options of the commands: type, limits and help of each, said once."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

_DATA, _LABELLED = "Calibration data", "Labelled data"
_MODEL, _OUTPUT = "Model", "Where results go"


class DtypeName(StrEnum):
    """Precision of the weights; auto is float32 on the CPU, the checkpoint's own elsewhere."""

    auto = "auto"
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


class MetricName(StrEnum):
    """Divergence between the whole and the pruned model."""

    last_token_cosine = "last_token_cosine"
    flow = "flow"
    kl = "kl"
    total_variation = "total_variation"
    answer_cosine = "answer_cosine"
    answer_kl = "answer_kl"
    answer_total_variation = "answer_total_variation"


class ScoreName(StrEnum):
    """How an answer is compared with the right ones."""

    exact_match = "exact_match"
    vqa_accuracy = "vqa_accuracy"
    anls = "anls"
    multiple_choice = "multiple_choice"
    relaxed_accuracy = "relaxed_accuracy"
    contains = "contains"


class Turns(StrEnum):
    """How much of a conversation is read: its first exchange, or all up to the last question."""

    first = "first"
    all = "all"


def _in_panels(panels: Sequence[str | None], flag: str, help: str, **limits: Any) -> list[Any]:
    """One option, to stand in a panel of each command's help."""
    return [typer.Option(flag, help=help, rich_help_panel=panel, **limits) for panel in panels]


# How data is read: of `search`, and of commands that ask labelled questions.
_BOTH = (_DATA, _LABELLED)
_SPLIT = _in_panels(_BOTH, "--split", "Split of the dataset.")
_PROMPT = _in_panels(_BOTH, "--prompt", "Asked of every image, instead of the data's own.")
_VIDEOS = _in_panels(_BOTH, "--video-column", "Column of video files or lists of frames.")
_TURNS = _in_panels(
    _BOTH, "--turns", "Of conversations: the first exchange, or all up to the last question."
)
_PLAIN = (None, _LABELLED)
_FRAMES = _in_panels(
    _PLAIN, "--frames", "Frames of each video, evenly spread; 8 unless said.", min=1
)
_FPS = _in_panels(_PLAIN, "--fps", "Instead: frames of each second of a video.")

# Of several commands.
Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.", rich_help_panel=_MODEL)]
Dtype = Annotated[DtypeName, typer.Option(help="Precision of the weights.", rich_help_panel=_MODEL)]
Frames = Annotated[int | None, _FRAMES[0]]
Fps = Annotated[float | None, _FPS[0]]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run code that comes with the checkpoint.",
        rich_help_panel=_MODEL,
    ),
]

# Of `search`: what; None where a recipe or a default may say it.
Model = Annotated[
    str | None, typer.Argument(help="Hub name, folder, or `testbed`, which comes along.")
]
Space = Annotated[
    str | None, typer.Option(help="Search space, name or YAML file; vflowopt unless said.")
]
Retain = Annotated[
    float | None,
    typer.Option(help="Share of visual tokens to keep, mean over layers; 0.10 unless said."),
]
Trials = Annotated[
    int | None,
    typer.Option(min=1, help="Total number of trials, over all runs; 100 unless said."),
]
Seed = Annotated[int | None, typer.Option(min=0, help="Of everything random; 0 unless said.")]
Metric = Annotated[MetricName | None, typer.Option(help="Divergence to minimise.")]
Racing = Annotated[bool, typer.Option("--racing/--no-racing", help="Stop hopeless trials early.")]
SelfCheck = Annotated[
    bool,
    typer.Option(
        "--self-check/--no-self-check",
        help="First make sure, once per model, that pruning it is right here.",
    ),
]
Study = Annotated[
    str | None, typer.Option(help="Study recipe, name or YAML file; options win over it.")
]
HeldOut = Annotated[
    bool,
    typer.Option(
        "--held-out/--no-held-out",
        help="Measure the best on as many other samples, which no trial sees.",
    ),
]
Accuracy = Annotated[
    bool,
    typer.Option(
        "--accuracy/--no-accuracy",
        help="For the shipped model, also measure accuracy on held-out questions.",
    ),
]

# Of `search`: on what.
Calibration = Annotated[
    str | None,
    typer.Option(
        help="Hub dataset, dataset folder, image folder, JSON, JSONL or Parquet.",
        rich_help_panel=_DATA,
    ),
]
Split = Annotated[str | None, _SPLIT[0]]
Columns = Annotated[
    str | None, typer.Option(help="As image=picture,prompt=question.", rich_help_panel=_DATA)
]
Prompt = Annotated[str | None, _PROMPT[0]]
VideoColumn = Annotated[str | None, _VIDEOS[0]]
ReadTurns = Annotated[Turns, _TURNS[0]]
_STRICT = _in_panels(
    _BOTH, "--strict", "Stop at the first sample that cannot be used, instead of leaving it out."
)
Strict = Annotated[bool, _STRICT[0]]
Samples = Annotated[
    int | None,
    typer.Option(min=1, help="How many samples; 256 unless said.", rich_help_panel=_DATA),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        min=1, help="Samples measured together, of each strategy.", rich_help_panel=_MODEL
    ),
]
TrialsPerBatch = Annotated[
    int,
    typer.Option(
        min=1,
        help="Strategies drawn and measured together; more fill a GPU with a small model.",
        rich_help_panel=_MODEL,
    ),
]
RandomInit = Annotated[
    Path | None,
    typer.Option(
        help="Random weights for this config.json; MODEL then names the processor.",
        rich_help_panel=_MODEL,
    ),
]

# Of `search`: where to.
Output = Annotated[
    Path | None, typer.Option(help="Folder; runs/NAME unless said.", rich_help_panel=_OUTPUT)
]
Storage = Annotated[
    str | None,
    typer.Option(
        help="Optuna database URL; study.journal in the folder unless said.",
        rich_help_panel=_OUTPUT,
    ),
]
CacheGb = Annotated[
    float | None,
    typer.Option(
        help="Bound on that folder in GB, oldest out first; 20 unless said.",
        rich_help_panel=_OUTPUT,
    ),
]
Cache = Annotated[
    Path | None,
    typer.Option(
        help="Folder of what no trial changes; the user's cache folder unless said.",
        rich_help_panel=_OUTPUT,
    ),
]

# Of commands that ask labelled questions.
LabelledModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Hub name, folder, or `testbed`; the strategy's unless said.",
        show_default=False,
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        help="Hub dataset, folder, JSON, JSONL or Parquet; the shipped questions for `testbed`.",
        rich_help_panel=_LABELLED,
    ),
]
Questions = Annotated[
    int | None,
    typer.Option(
        min=1, help="How many; 1000, or all of the shipped ones.", rich_help_panel=_LABELLED
    ),
]
By = Annotated[
    str | None,
    typer.Option(help="Column whose values are told apart.", rich_help_panel=_LABELLED),
]
Instruction = Annotated[
    str | None,
    typer.Option(
        help='Added below every question, as "Answer with a single word."',
        rich_help_panel=_LABELLED,
    ),
]
Score = Annotated[ScoreName, typer.Option("--metric", help="How answers are scored.")]
NewTokens = Annotated[int, typer.Option(min=1, help="Answer at most this many tokens.")]
DataSplit = Annotated[str | None, _SPLIT[1]]
DataColumns = Annotated[
    str | None,
    typer.Option(
        "--columns",
        help="As image=picture,prompt=question,answer=answers,options=choices.",
        rich_help_panel=_LABELLED,
    ),
]
DataPrompt = Annotated[str | None, _PROMPT[1]]
DataVideoColumn = Annotated[str | None, _VIDEOS[1]]
DataTurns = Annotated[Turns, _TURNS[1]]
DataFrames = Annotated[int | None, _FRAMES[1]]
DataFps = Annotated[float | None, _FPS[1]]
DataStrict = Annotated[bool, _STRICT[1]]
