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
    """Who draws the parameters of the trials."""

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


FRAMES_HELP = "Frames of each video, evenly spread; 8 unless said."
FPS_HELP = "Instead of --frames: how many of each second of a video; none unless said."
SPLIT_HELP = "Split of the dataset; its only one unless said."
PROMPT_HELP = "Asked of every image; the data's own questions unless said."
VIDEO_HELP = "Column of video files or lists of frames; guessed unless said."
STRICT_HELP = "Stop at the first sample that cannot be used, instead of leaving it out."
TURNS_HELP = "Of conversations: the first exchange, or all up to the last question."

# Of several commands.
Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Device = Annotated[
    str,
    typer.Option(
        callback=typed.device,
        help="cpu, cuda or cuda:1; auto takes a GPU where there is one.",
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
    typer.Argument(help="Hub name, folder, or `testbed`, which comes along, unless said."),
]
Space = Annotated[
    str | None, typer.Option(help="Search space, name or YAML file; vflowopt unless said.")
]
Retain = Annotated[
    float | None,
    typer.Option(
        callback=typed.share,
        help="Share of visual tokens to keep, mean over layers, above 0 up to 1; 0.10 unless said.",
    ),
]
Trials = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Total number of trials, over all runs; 100 unless said, without a MODEL 400.",
    ),
]
Seed = Annotated[int | None, typer.Option(min=0, help="Of everything random; 0 unless said.")]
Metric = Annotated[
    MetricName | None,
    typer.Option(
        metavar="NAME",
        help=f"Divergence to minimise: {names_of(MetricName)}; last_token_cosine unless said, "
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
        help=f"Who draws strategies: {names_of(Sampler)}. tpe serves everywhere; gp, a Gaussian "
        "process, for a few dozen slow trials with --no-racing; the others for comparison.",
    ),
]
SelfCheck = Annotated[
    bool,
    typer.Option(
        "--self-check/--no-self-check",
        help="First make sure, once per model, that pruning it is right here.",
        rich_help_panel=_MEASURING,
    ),
]
Study = Annotated[
    str | None,
    typer.Option(
        help="Study recipe, name or YAML file; options win over it. quickstart unless it or a "
        "MODEL is said."
    ),
]
HeldOut = Annotated[
    bool,
    typer.Option(
        "--held-out/--no-held-out",
        help="Measure the best on as many other samples, which no trial sees.",
        rich_help_panel=_MEASURING,
    ),
]
Accuracy = Annotated[
    bool,
    typer.Option(
        "--accuracy/--no-accuracy",
        help="For the shipped model, also measure accuracy on held-out questions.",
        rich_help_panel=_MEASURING,
    ),
]

# Of `search`: on what.
Calibration = Annotated[
    str | None,
    typer.Option(
        help="Hub dataset, dataset folder, image folder, JSON, JSONL or Parquet; needed with a "
        "MODEL of your own, what comes along unless said.",
        rich_help_panel=_DATA,
    ),
]
Split = Annotated[str | None, typer.Option(help=SPLIT_HELP, rich_help_panel=_DATA)]
Columns = Annotated[
    str | None,
    typer.Option(
        help="As image=picture,prompt=question; guessed unless said.", rich_help_panel=_DATA
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
    typer.Option(min=1, help="How many samples; 256 unless said.", rich_help_panel=_DATA),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Samples run together, of each strategy; by prompt length unless said.",
        rich_help_panel=_MODEL,
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
Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Processes that run trials at the same time; one for each of --devices, or 1, unless "
        "said. With several, the same seed no longer gives the same trials.",
        rich_help_panel=_MODEL,
    ),
]
Devices = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        help="As cuda:0,cuda:1: for --workers in turn; all GPUs unless this or --device is said.",
        rich_help_panel=_MODEL,
    ),
]
RandomInit = Annotated[
    Path | None,
    typer.Option(
        help="Random weights for this config.json; MODEL then names the processor. The "
        "checkpoint's own weights unless said.",
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
        callback=typed.database,
        help="Optuna database URL, as sqlite:///study.db; study.journal in the folder unless said.",
        rich_help_panel=_OUTPUT,
    ),
]
CacheGb = Annotated[
    float | None,
    typer.Option(
        callback=typed.above_zero,
        help="Bound on the folder of --cache in GB, oldest out first; 20 unless said.",
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

# Of `apply`.
Frames = Annotated[int | None, typer.Option(min=1, help=FRAMES_HELP)]
Fps = Annotated[float | None, typer.Option(callback=typed.above_zero, help=FPS_HELP)]
