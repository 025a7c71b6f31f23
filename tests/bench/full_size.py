"""What pruning saves at full size: `python -m tests.bench.full_size [--help]`.

LLaVA-OneVision-7B's shape with random weights, made where they are used, and one image of
2340 x 1800 pixels, which takes about as many visual tokens as a base view and nine tiles.
The published strategies and the plain attention baseline at the same budgets, each in
alternation with the unpruned model: time to first token and of the decoder alone, beside what
the FLOP count allows; bytes of the KV cache; peak memory. Then trials per hour. The rows go to
a table that names the machine, the versions and the commit.

The published speed-ups of the prefill, on an A100 (VFlowOpt): 1.8, 3.2 and 3.8 at 50, 25 and 10 %.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import LlavaOnevisionConfig, Qwen2Config, SiglipVisionConfig

from tests.bench.full_size_rows import Row, speed_rows
from tests.bench.subjects import (
    SIDE,
    Subject,
    noise_samples,
    onevision_config,
    onevision_processor,
    so400m,
)
from vflowopt_search.adapters.loading import random_init
from vflowopt_search.baselines import baseline
from vflowopt_search.benchmark.prompts import Size
from vflowopt_search.benchmark.records import Spread
from vflowopt_search.objective import Objective, build_objective
from vflowopt_search.ops.bench.rows import append, setup_of
from vflowopt_search.resources import studies_folder
from vflowopt_search.strategy import Strategy

BUDGETS = ("0.50", "0.25", "0.10")
DECODER_LAYERS, VISION_LAYERS = 28, 26
MOST_TILES = 6
"""Across and down, in the checkpoint's list of resolutions."""


@dataclass(frozen=True)
class Shape:
    """What is measured.

    Attributes:
        name: of the model.
        config: its configuration.
        image: width and height, in pixels.
    """

    name: str
    config: LlavaOnevisionConfig
    image: Size


def pinpoints(side: int) -> list[list[int]]:
    """Heights and widths that images may be brought to."""
    steps = range(side, side * MOST_TILES + 1, side)
    return [[height, width] for height in steps for width in steps]


def full() -> Shape:
    """LLaVA-OneVision-7B."""
    text = Qwen2Config(
        vocab_size=152_064,
        hidden_size=3584,
        intermediate_size=18_944,
        num_hidden_layers=DECODER_LAYERS,
        num_attention_heads=28,
        num_key_value_heads=4,
        max_position_embeddings=32_768,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )
    config = onevision_config(so400m(VISION_LAYERS), text, pinpoints(SIDE))
    return Shape("OneVision-7B shape, random weights", config, (2340, 1800))


def tiny() -> Shape:
    """As many layers, all else small: for trying the program on a CPU."""
    vision = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=VISION_LAYERS,
        num_attention_heads=2,
        image_size=28,
        patch_size=7,
        vision_use_head=False,
    )
    text = Qwen2Config(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=DECODER_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return Shape("tiny, random weights", onevision_config(vision, text, pinpoints(28)), (170, 131))


def subject_of(shape: Shape, samples: int, *, device: str, dtype: str) -> Subject:
    """The model, its weights drawn on its device in this type, and its samples."""
    with tempfile.TemporaryDirectory() as folder:
        shape.config.save_pretrained(folder)
        model = random_init(folder, device=device, dtype=dtype)
    processor = onevision_processor(shape.config)
    return Subject(shape.name, model, processor, noise_samples(samples, shape.image))


def strategies_on(subject: Subject, *, published_for_it: bool) -> dict[str, Strategy]:
    """Published strategies and the plain attention baseline at every budget, by name.

    Where they were not `published_for_it`, they do not name the model that they were published for.
    """
    one = replace(subject.samples, samples=subject.samples.samples[:1])
    facts = build_objective(subject.model, subject.processor, one).facts
    found: dict[str, Strategy] = {}
    for budget in BUDGETS:
        path = studies_folder() / "published" / f"llava-onevision-7b-{budget}.json"
        strategy = Strategy.load(path)
        if not published_for_it:
            strategy = strategy.model_copy(update={"model": None})
        found[f"published {budget}"] = strategy
        found[f"attention {budget}"] = baseline("attention", facts, float(budget))
    return found


def trial_seconds(
    objective: Objective, strategies: Sequence[Strategy], repeats: int
) -> tuple[list[Spread], float]:
    """Seconds of full trials of each strategy, in alternation; and of the first one before them.

    The first one computes the attention maps, which are paid once.
    """
    everything, seconds = range(objective.num_samples), [list[float]() for _ in strategies]
    start = time.perf_counter()
    for strategy in strategies:
        objective.measure(strategy, everything)
        if strategy is strategies[0]:
            first = time.perf_counter() - start
    for _ in range(repeats):
        for strategy, mine in zip(strategies, seconds, strict=True):
            start = time.perf_counter()
            objective.measure(strategy, everything)
            mine.append(time.perf_counter() - start)
    return [Spread.of(mine) for mine in seconds], first


def with_trials(
    subject: Subject, rows: Sequence[Row], strategies: dict[str, Strategy], repeats: int
) -> list[Row]:
    """The rows of the pruned sides with what a full trial takes on all samples."""
    start = time.perf_counter()
    objective = build_objective(subject.model, subject.processor, subject.samples)
    built = time.perf_counter() - start
    spreads, first = trial_seconds(objective, list(strategies.values()), repeats)
    paid_once = built + max(0.0, first - spreads[0].median)
    found = dict(zip(strategies, spreads, strict=True))
    return [
        row
        if row.side == "unpruned"
        else replace(
            row,
            samples=objective.num_samples,
            trial_s=found[row.beside].median,
            trials_per_hour=3600 / found[row.beside].median,
            paid_once_s=paid_once,
        )
        for row in rows
    ]


def measure(
    subject: Subject, strategies: dict[str, Strategy], size: Size, repeats: int, trial_repeats: int
) -> list[Row]:
    """All rows, the speed of each printed when it is known."""
    rows: list[Row] = []
    for name, strategy in strategies.items():
        for row in speed_rows(subject, name, strategy, size, repeats):
            print(row, flush=True)
            rows.append(row)
    rows = with_trials(subject, rows, strategies, trial_repeats)
    for row in rows:
        if row.trials_per_hour is not None:
            print(f"{row.beside}: {row.trials_per_hour:.0f} trials per hour", flush=True)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the rows and keep them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--tiny", action="store_true", help="the same program on a small model")
    parser.add_argument("--samples", type=int, default=30, help="of each trial")
    parser.add_argument("--repeats", type=int, default=9, help="prefills of each side")
    parser.add_argument("--trial-repeats", type=int, default=3, help="full trials of each strategy")
    parser.add_argument("--out", type=Path, help="a table to add the rows to, as CSV")
    asked = parser.parse_args(arguments)
    shape = tiny() if asked.tiny else full()
    subject = subject_of(shape, asked.samples, device=asked.device, dtype=asked.dtype)
    setup = setup_of(torch.device(subject.model.device))
    print(setup)
    strategies = strategies_on(subject, published_for_it=not asked.tiny)
    rows = measure(subject, strategies, shape.image, asked.repeats, asked.trial_repeats)
    if asked.out is not None:
        append(asked.out, setup, rows)
        print(f"added to {asked.out}")


if __name__ == "__main__":
    main()
