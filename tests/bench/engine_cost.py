"""What the engine itself costs: `python -m tests.bench.engine_cost [--help]`.

Decode: a step of a pruned model beside one of the unpruned model on a prompt of as many tokens as
the pruned cache holds (where later stages let layers hold fewer, as many in sum over the layers).
Prefill: the speed-up beside the one that the FLOP count allows, from the pixels to the first
token (the vision encoder runs whole) and of the decoder alone. Both sides take
turns in one run, on two modules that share their weights; medians of ratios, for on a noisy
machine only these count. Times are the process's own (CPU seconds), so that other programs on the
machine hardly matter; run it with OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tests.bench.prefill_cost import prefill_table
from tests.bench.sides import FIRST_WORD, STAGES, batch_of, spread, strategy_on, text_prompt, twin
from tests.bench.subjects import SUBJECTS, Subject, onevision_half_billion
from vflowopt_search.adapters.registry import adapter_for
from vflowopt_search.deploy import pruned
from vflowopt_search.strategy import Strategy

SHORT_TOWER = {"onevision-0.5b": partial(onevision_half_billion, vision_layers=2)}
"""Subjects for what comes after the vision encoder; most of its layers only take time."""

ROUND = 100
"""Decode steps after which a prompt is read anew, so that answers do not outgrow prompts."""

WARM_UP = 4
"""Decode steps of each round that are not counted."""


@dataclass
class Decoding:
    """One side of the comparison: a model in the middle of its answer."""

    model: Any
    cache: Any
    mask_BS: Tensor | None
    position_B1: Tensor
    seconds: list[float] = field(default_factory=list)

    @classmethod
    def after(cls, model: Any, inputs: dict[str, Any]) -> Decoding:
        """Read a prompt; a mask without padding is left out, as `generate` does."""
        given = inputs | {"attention_mask": without_padding(inputs["attention_mask"])}
        found = model(**given, use_cache=True, logits_to_keep=1)
        last_B1 = inputs["attention_mask"].sum(1, keepdim=True)
        return cls(model, found.past_key_values, given["attention_mask"], last_B1)

    def step(self, *, timed: bool) -> None:
        """One more token, given to the model as `generate` does."""
        if self.mask_BS is not None:
            self.mask_BS = torch.nn.functional.pad(self.mask_BS, (0, 1), value=1)
        start = time.process_time()
        self.model(
            input_ids=torch.full_like(self.position_B1, FIRST_WORD),
            attention_mask=self.mask_BS,
            position_ids=self.position_B1,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        if timed:
            self.seconds.append(time.process_time() - start)
        self.position_B1 = self.position_B1 + 1


def without_padding(mask_BS: Tensor) -> Tensor | None:
    """The mask, None if it masks nothing."""
    return None if bool(mask_BS.all()) else mask_BS


def decode_ratios(subject: Subject, strategy: Strategy, inputs: Any, steps: int) -> list[float]:
    """Time of each pruned step over that of its neighbour, an unpruned step of the same length."""
    other, ratios = twin(subject.model), list[float]()
    with torch.inference_mode(), pruned(subject.model, strategy) as applied:
        while len(ratios) < steps:
            mine = Decoding.after(subject.model, inputs)
            assert applied.last is not None
            plain = Decoding.after(other, text_prompt(applied.last))
            for number in range(min(ROUND, steps) + WARM_UP):
                for side in (mine, plain) if number % 2 else (plain, mine):
                    side.step(timed=number >= WARM_UP)
            ratios += [a / b for a, b in zip(mine.seconds, plain.seconds, strict=True)]
    return ratios


def decode_table(subject: Subject, steps: int) -> None:
    """Every kind of batch and attention, as a table."""
    print(f"## A decode step, {subject.name}\n")
    print("| attention | batch | strategy | pruned / unpruned of that length | quartiles |")
    print("|---|---|---|---|---|")
    batches: dict[str, Callable[[], Any]] = {
        "1": lambda: batch_of(subject, 1, ragged=False),
        "4, equal": lambda: batch_of(subject, 4, ragged=False),
        "4, ragged": lambda: batch_of(subject, 4, ragged=True),
    }
    for attention in ("sdpa", "eager"):
        adapter_for(subject.model).backbone.set_attn_implementation(attention)
        for batch, make in batches.items():
            for stages in STAGES:
                ratios = decode_ratios(subject, strategy_on(subject, stages), make(), steps)
                print(f"| {attention} | {batch} | {stages} | {spread(ratios)} |", flush=True)
    adapter_for(subject.model).backbone.set_attn_implementation("sdpa")


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--subject", choices=sorted(SUBJECTS), nargs="+", default=sorted(SUBJECTS))
    parser.add_argument(
        "--steps", type=int, default=400, help="decode steps of each side; 0 for none"
    )
    parser.add_argument("--repeats", type=int, default=9, help="prefills of each side; 0 for none")
    parser.add_argument("--batches", type=int, nargs="+", default=[1], help="of the prefills")
    parser.add_argument(
        "--short-tower", action="store_true", help="prefill behind a short vision encoder, too"
    )
    asked = parser.parse_args()
    for name in asked.subject:
        short_tower = SHORT_TOWER.get(name, SUBJECTS[name])
        if asked.steps:
            decode_table(short_tower(4), asked.steps)
        if asked.repeats:
            make = short_tower if asked.short_tower else SUBJECTS[name]
            prefill_table(make(max(asked.batches)), asked.repeats, asked.batches)


if __name__ == "__main__":
    main()
