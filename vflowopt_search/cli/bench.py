"""`bench`: what a strategy saves, measured beside the unpruned model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from vflowopt_search import run_folder
from vflowopt_search.cli.bench_table import rendered
from vflowopt_search.cli.candidates import run_of
from vflowopt_search.cli.console import print_json, quiet_progress_bars, stdout
from vflowopt_search.cli.interrupted import INTERRUPTED
from vflowopt_search.cli.model_choice import Model, chosen_weights
from vflowopt_search.cli.options import (
    Device,
    Dtype,
    DtypeName,
    Json,
    StrategyPath,
    TrustRemoteCode,
)
from vflowopt_search.cli.output import check_file
from vflowopt_search.cli.progress import display
from vflowopt_search.errors import BenchmarkError, ModelError
from vflowopt_search.model_source import ModelSource, load_model, load_processor
from vflowopt_search.strategy_hub import find_strategy

if TYPE_CHECKING:
    from PIL.Image import Image

    from vflowopt_search.adapters.base import Adapter
    from vflowopt_search.benchmark.plan import Plan
    from vflowopt_search.benchmark.prompts import Prompts, Size
    from vflowopt_search.benchmark.records import Benchmark

USUAL_SIZE = (672, 672)
LONGEST_SIDE = 16384
"""Pixels; an image of this width and height is one of a gigabyte."""
_SIZE = re.compile(r"(\d+)x(\d+)")

BatchSizes = Annotated[
    list[str] | None,
    typer.Option("--batch-size", help="Prompts answered together, as 1,4. Default: 1."),
]
Resolutions = Annotated[
    list[str] | None,
    typer.Option(
        "--resolution",
        help="Width and height of the images in pixels, as 672x672; may be repeated. "
        "Default: that of --image, or 672x672.",
    ),
]
Init = Annotated[
    Path | None,
    typer.Option(
        help="Random weights from this config.json; times do not depend on the weights. Default: "
        "the checkpoint's weights. Without processor files beside it, or a --model that has them, "
        "for types internvl, llava, llava_next, llava_onevision, qwen2_vl and qwen2_5_vl only."
    ),
]
NewTokens = Annotated[int, typer.Option(min=2, help="Tokens of each answer.")]
Repeats = Annotated[int, typer.Option(min=1, help="Timed runs of each model, unpruned and pruned.")]
Picture = Annotated[
    Path | None, typer.Option(help="Image file, resized to each resolution. Default: noise.")
]
Prompt = Annotated[
    str | None, typer.Option(help="Question about the image. Default: what is in it.")
]
Output = Annotated[
    Path | None, typer.Option(help="JSON file. Default: benchmark.json in the search's folder.")
]


def bench(
    file: StrategyPath,
    model: Model = None,
    random_init: Init = None,
    batch_size: BatchSizes = None,
    resolution: Resolutions = None,
    new_tokens: NewTokens = 32,
    repeats: Repeats = 5,
    image: Picture = None,
    prompt: Prompt = None,
    device: Device = "auto",
    dtype: Dtype = DtypeName.auto,
    trust_remote_code: TrustRemoteCode = False,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Measure what a strategy saves: time to first token, throughput, KV cache, memory, FLOPs.

    The unpruned and the pruned model answer in alternation. With --random-init, full-size figures
    need no weights. Results are written after every kind of prompt, into the folder of the search
    for its report, or to --output.

    Example: vflowopt-search bench runs/quickstart
    """
    from vflowopt_search.adapters.registry import adapter_for
    from vflowopt_search.benchmark.run import benchmark
    from vflowopt_search.calibration.images import open_image

    if output is None and (folder := run_of(file)) is not None:
        output = folder / run_folder.BENCHMARK
    check_file(output, "--output")
    strategy = find_strategy(file)
    named = strategy.model.name if strategy.model else None
    model, random_init = chosen_weights(model, random_init, named)
    picture = None if image is None else open_image(image)
    plan = planned(batch_size, resolution, new_tokens, repeats, picture)
    quiet_progress_bars()
    source = ModelSource(model, device, dtype.value, trust_remote_code, random_init=random_init)
    loaded = load_model(source)
    prompts = prompts_for(adapter_for(loaded), source, prompt, picture)
    kept = Kept(output)
    try:
        with display() as shown:
            shown.phase("measuring")
            benchmark(
                loaded,
                strategy,
                prompts,
                plan,
                name=source.name,
                random_weights=random_init is not None,
                progress=shown.step,
                on_row=kept.keep,
            )
    except KeyboardInterrupt:
        kept.print(as_json=as_json)
        done = 0 if kept.found is None else len(kept.found.rows)
        typer.echo(f"interrupted; {done} of {len(plan.kinds)} kinds of prompt measured", err=True)
        raise typer.Exit(INTERRUPTED) from None
    kept.print(as_json=as_json)


@dataclass
class Kept:
    """What was measured so far: in the file after every row, if there is to be one.

    Attributes:
        output: the file; None is none.
        found: the benchmark of the rows that are done; None before the first.
    """

    output: Path | None
    found: Benchmark | None = None

    def keep(self, found: Benchmark) -> None:
        """Write the file again, with one more row.

        Raises:
            BenchmarkError: it cannot be written.
        """
        self.found = found
        if self.output is not None:
            found.save(self.output)

    def print(self, *, as_json: bool) -> None:
        """Print what there is, for people or for scripts."""
        if self.found is None:
            return
        if as_json:
            print_json(self.found.model_dump(mode="json"))
            return
        for part in rendered(self.found):
            stdout().print(part, soft_wrap=not isinstance(part, Table))
        if self.output is not None:
            stdout().print(f"\nbenchmark {self.output}", soft_wrap=True)


def planned(
    batch_sizes: Sequence[str] | None,
    resolutions: Sequence[str] | None,
    new_tokens: int,
    repeats: int,
    picture: Image | None,
) -> Plan:
    """What was typed as a plan.

    Raises:
        typer.BadParameter: a batch size or a resolution is none.
    """
    from vflowopt_search.benchmark.plan import Plan

    usual = USUAL_SIZE if picture is None else picture.size
    return Plan(
        batch_sizes=[_count(part) for part in _parts(batch_sizes)] or [1],
        resolutions=[_size(part) for part in _parts(resolutions)] or [usual],
        new_tokens=new_tokens,
        repeats=repeats,
    )


def prompts_for(
    adapter: Adapter, source: ModelSource, question: str | None, picture: Image | None
) -> Prompts:
    """Prompts through the processor; put together here where a bare configuration has none.

    Raises:
        ModelError: a model was named whose processor cannot be had.
        BenchmarkError: there is none, and the family's prompts cannot be made without.
    """
    from vflowopt_search.benchmark.prompts import QUESTION, by_processor, without_processor

    try:
        processor = load_processor(source)
    except ModelError as error:
        if source.random_init is None or source.model is not None:
            raise
        if question is not None or picture is not None:
            raise BenchmarkError(
                "--prompt and --image need a processor, and there is none beside "
                f"{source.random_init}; leave them out, or name a processor with --model"
            ) from error
        return without_processor(adapter)
    return by_processor(adapter, processor, question=question or QUESTION, image=picture)


def _parts(typed: Sequence[str] | None) -> list[str]:
    return [part.strip() for one in typed or () for part in one.split(",")]


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(
            f"{text!r} is not a whole number from 1 on; give one, or several as 1,4,16",
            param_hint="--batch-size",
        )
    return int(text)


def _size(text: str) -> Size:
    found = _SIZE.fullmatch(text.lower())
    if found is None or not all(1 <= int(side) <= LONGEST_SIDE for side in found.groups()):
        raise typer.BadParameter(
            f"{text!r} is not WIDTHxHEIGHT in pixels, each from 1 to {LONGEST_SIDE}; write it as "
            "1280x720",
            param_hint="--resolution",
        )
    return int(found[1]), int(found[2])
