"""Options of the commands: type, limits, default and help of each, said once."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vflowopt_search.cli import typed

_DATA, _MODEL, _OUTPUT = "Calibration data", "Model", "Where results go"
_MEASURING = "How it is measured"  # flags with two names, which take much room


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


class Sampler(StrEnum):
    """Sampling algorithm of the trials' parameters."""

    tpe = "tpe"
    gp = "gp"
    tpe_multivariate = "tpe-multivariate"
    random = "random"


class Turns(StrEnum):
    """How much of a conversation is read: its first exchange, or all up to the last question."""

    first = "first"
    all = "all"


def names_of(names: type[StrEnum]) -> str:
    """All names, for a help text: beside the option they would be broken anywhere."""
    return ", ".join(name.value for name in names)


FRAMES_HELP = "Frames of each video, evenly spread. Default: 8."
FPS_HELP = "Instead of --frames: frames per second of a video. Default: none."
SPLIT_HELP = "Split of the dataset. Default: its only one."
PROMPT_HELP = "Question to ask about every image. Default: the data's own questions."
VIDEO_HELP = "Column of video files or lists of frames. Default: guessed."
STRICT_HELP = "Stop at the first sample that cannot be used, instead of skipping it."
TURNS_HELP = "Of a conversation: its first exchange, or all of it up to the last question."

# Of several commands.
StrategyPath = Annotated[
    Path,
    typer.Argument(
        metavar="STRATEGY",
        help="A strategy file, or a folder that contains one, such as the output of a search.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Device = Annotated[
    str,
    typer.Option(
        callback=typed.device,
        help="cpu, cuda or cuda:1; auto takes a GPU if there is one.",
        rich_help_panel=_MODEL,
    ),
]
Dtype = Annotated[
    DtypeName,
    typer.Option(
        metavar="NAME",
        help=f"Precision of the weights: {names_of(DtypeName)}; auto is float32 on a CPU, the "
        "checkpoint's own elsewhere.",
        rich_help_panel=_MODEL,
    ),
]
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
    str | None,
    typer.Argument(help="Hub name, folder, or `testbed`, the bundled model. Default: testbed."),
]
Space = Annotated[
    str | None, typer.Option(help="Search space: name or YAML file. Default: vflowopt.")
]
Retain = Annotated[
    float | None,
    typer.Option(
        callback=typed.searched_share,
        help="Mean retention ratio over the decoder layers, in (0, 1). Default: 0.10.",
    ),
]
Trials = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Total number of trials, over all runs. Default: 100, or 400 without a MODEL.",
    ),
]
Seed = Annotated[int | None, typer.Option(min=0, help="Seed of everything random. Default: 0.")]
Metric = Annotated[
    MetricName | None,
    typer.Option(
        metavar="NAME",
        help=f"Divergence to minimise: {names_of(MetricName)}. Default: last_token_cosine; "
        "without a MODEL total_variation.",
    ),
]
Racing = Annotated[
    bool,
    typer.Option(
        "--racing/--no-racing", help="Stop hopeless trials early.", rich_help_panel=_MEASURING
    ),
]
Sampled = Annotated[
    Sampler,
    typer.Option(
        "--sampler",
        metavar="NAME",
        help=f"Sampling algorithm: {names_of(Sampler)}. tpe is a good default; gp (Gaussian "
        "process) suits a few dozen slow trials with --no-racing; the others are for comparison.",
    ),
]
SelfCheck = Annotated[
    bool,
    typer.Option(
        "--self-check/--no-self-check",
        help="Before the first run with a model, check that it is pruned correctly here.",
        rich_help_panel=_MEASURING,
    ),
]
Study = Annotated[
    str | None,
    typer.Option(
        help="Study recipe or YAML file; options override it. Default: quickstart without a MODEL."
    ),
]
HeldOut = Annotated[
    bool,
    typer.Option(
        "--held-out/--no-held-out",
        help="Measure the best strategy again on held-out samples, which no trial sees.",
        rich_help_panel=_MEASURING,
    ),
]
Accuracy = Annotated[
    bool,
    typer.Option(
        "--accuracy/--no-accuracy",
        help="With the bundled model: also measure accuracy on held-out questions.",
        rich_help_panel=_MEASURING,
    ),
]

# Of `search`: on what.
Calibration = Annotated[
    str | None,
    typer.Option(
        help="Hub dataset, dataset folder, image folder, JSON, JSONL or Parquet; required with a "
        "MODEL of your own. Default: the bundled samples.",
        rich_help_panel=_DATA,
    ),
]
Split = Annotated[str | None, typer.Option(help=SPLIT_HELP, rich_help_panel=_DATA)]
Columns = Annotated[
    str | None,
    typer.Option(
        help="Column names, as image=picture,prompt=question. Default: guessed.",
        rich_help_panel=_DATA,
    ),
]
Prompt = Annotated[str | None, typer.Option(help=PROMPT_HELP, rich_help_panel=_DATA)]
VideoColumn = Annotated[str | None, typer.Option(help=VIDEO_HELP, rich_help_panel=_DATA)]
Strict = Annotated[bool, typer.Option("--strict", help=STRICT_HELP, rich_help_panel=_DATA)]
ReadTurns = Annotated[Turns, typer.Option("--turns", help=TURNS_HELP, rich_help_panel=_DATA)]
ReadFrames = Annotated[
    int | None, typer.Option("--frames", min=1, help=FRAMES_HELP, rich_help_panel=_DATA)
]
ReadFps = Annotated[
    float | None,
    typer.Option("--fps", callback=typed.above_zero, help=FPS_HELP, rich_help_panel=_DATA),
]
Samples = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Calibration samples. Default: 256, or half of the data if it has fewer than 512.",
        rich_help_panel=_DATA,
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Samples per batch, of each strategy. Default: by prompt length.",
        rich_help_panel=_MODEL,
    ),
]
TrialsPerBatch = Annotated[
    int,
    typer.Option(
        min=1,
        help="Strategies drawn and measured together; more keep a GPU busy with a small model.",
        rich_help_panel=_MODEL,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Parallel worker processes. Default: one per device in --devices, else 1. With "
        "several, a seed no longer reproduces the same trials.",
        rich_help_panel=_MODEL,
    ),
]
Devices = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        help="Devices of the workers, as cuda:0,cuda:1. Default: --device; of auto, all GPUs.",
        rich_help_panel=_MODEL,
    ),
]
RandomInit = Annotated[
    Path | None,
    typer.Option(
        help="Random weights for this config.json; MODEL then names the processor. "
        "Default: the checkpoint's weights.",
        rich_help_panel=_MODEL,
    ),
]

# Of `search`: where to.
Output = Annotated[
    Path | None, typer.Option(help="Folder. Default: runs/NAME.", rich_help_panel=_OUTPUT)
]
Storage = Annotated[
    str | None,
    typer.Option(
        callback=typed.database,
        help="Optuna database URL, as sqlite:///study.db. Default: study.journal in the folder.",
        rich_help_panel=_OUTPUT,
    ),
]
CacheGb = Annotated[
    float | None,
    typer.Option(
        callback=typed.above_zero,
        help="Size limit of the cache folder in GB; oldest files go first. Default: 20.",
        rich_help_panel=_OUTPUT,
    ),
]
Cache = Annotated[
    Path | None,
    typer.Option(
        help="Cache folder, for what no trial changes. Default: the user's cache folder.",
        rich_help_panel=_OUTPUT,
    ),
]

# Of `apply`.
Frames = Annotated[int | None, typer.Option(min=1, help=FRAMES_HELP)]
Fps = Annotated[float | None, typer.Option(callback=typed.above_zero, help=FPS_HELP)]
