"""The prefill half of `engine_cost`: the speed-up beside the one that the FLOP count allows."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch

from tests.bench.sides import STAGES, batch_of, spread, strategy_on, text_prompt, twin
from tests.bench.subjects import Subject
from vflowopt_search.adapters.registry import adapter_for
from vflowopt_search.benchmark.costs import decoder_shape
from vflowopt_search.budget import ModelShape, VisionShape, prefill_flops
from vflowopt_search.deploy import pruned
from vflowopt_search.strategy import Strategy


@contextmanager
def backbone_entered(model: Any) -> Iterator[list[float]]:
    """When each forward reached the decoder; the vision encoder has run by then."""
    entered: list[float] = []
    hook = adapter_for(model).backbone.register_forward_pre_hook(
        lambda module, args: entered.append(time.process_time()), prepend=True
    )
    try:
        yield entered
    finally:
        hook.remove()


def timed_prefill(model: Any, inputs: Any) -> tuple[float, float]:
    """Seconds before the decoder, and from there to the logits."""
    with backbone_entered(model) as entered:
        start = time.process_time()
        model(**inputs, use_cache=True, logits_to_keep=1)
        end = time.process_time()
    return entered[0] - start, end - entered[0]


@dataclass(frozen=True)
class PrefillCost:
    """Speed-up of the prefill, and what was possible.

    Attributes:
        allowed_whole: FLOPs of the unpruned prefill over those of the pruned one, from pixels.
        allowed: the same of the decoder alone.
        turns: seconds before and in the decoder, of the unpruned model, of the pruned one and of
            the unpruned one on text alone of the pruned length, one triple per repeat.
    """

    allowed_whole: float
    allowed: float
    turns: list[list[tuple[float, float]]]

    @property
    def whole(self) -> list[float]:
        """Measured speed-ups from the pixels to the first token."""
        return [sum(plain) / sum(mine) for plain, mine, _ in self.turns]

    @property
    def decoder(self) -> list[float]:
        """Measured speed-ups of the decoder."""
        return [plain[1] / mine[1] for plain, mine, _ in self.turns]

    @property
    def encoding(self) -> list[float]:
        """Time before the decoder, pruned over unpruned."""
        return [mine[0] / plain[0] for plain, mine, _ in self.turns]

    @property
    def tax(self) -> list[float]:
        """Decoder's time, pruned over the unpruned one's on text alone of the pruned length."""
        return [mine[1] / alike[1] for _, mine, alike in self.turns]


def shape_with_encoder(model: Any) -> ModelShape:
    """Sizes of the decoder and of its SigLIP."""
    shape, config = decoder_shape(adapter_for(model)), model.config.vision_config
    assert shape is not None
    patches = (config.image_size // config.patch_size) ** 2
    vision = VisionShape(
        config.num_hidden_layers, config.hidden_size, config.intermediate_size, patches
    )
    return replace(shape, vision=vision)


def prefill_cost(subject: Subject, strategy: Strategy, inputs: Any, repeats: int) -> PrefillCost:
    """Unpruned and pruned prefill in alternation."""
    other, shape = twin(subject.model), shape_with_encoder(subject.model)
    turns = []
    with torch.inference_mode(), pruned(subject.model, strategy) as applied:
        timed_prefill(subject.model, inputs)
        last = applied.last
        assert last is not None
        text = text_prompt(last)
        sides = ((other, inputs), (subject.model, inputs), (other, text))
        for _ in range(repeats + 1):
            turns.append([timed_prefill(model, given) for model, given in sides])
    whole_per_row = [[n] * shape.decoder_layers for n in last.visual_tokens]
    whole, short = (
        sum(prefill_flops(shape, *row) for row in zip(alive, last.text_tokens, strict=True))
        for alive in (whole_per_row, last.tokens_per_layer)
    )
    tiles = inputs["pixel_values"].flatten(0, 1).shape[0]
    nothing = [0] * shape.decoder_layers
    encoder = prefill_flops(shape, nothing, 0, tiles=tiles) - prefill_flops(shape, nothing, 0)
    return PrefillCost((whole + encoder) / (short + encoder), whole / short, turns[1:])


def reached(allowed: float, speed_ups: list[float]) -> str:
    """The speed-up that the FLOPs allow, the measured one and its share of that."""
    return f"{allowed:.2f} | {spread(speed_ups)} | {median(speed_ups) / allowed:.1%}"


def prefill_table(subject: Subject, repeats: int, batches: Sequence[int]) -> None:
    """The decoder's speed-up as a table."""
    print(f"\n## Prefill, {subject.name}\n")
    columns = ["batch", "strategy"]
    for part in ("from pixels", "decoder"):
        columns += [f"{part}: allowed", "speed-up", "quartiles", "share"]
    columns += ["decoder, pruned / text of that length", "before the decoder, pruned / unpruned"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for rows in batches:
        for stages in STAGES:
            inputs = batch_of(subject, rows, ragged=True)
            cost = prefill_cost(subject, strategy_on(subject, stages), inputs, repeats)
            print(
                f"| {rows} | {stages} | {reached(cost.allowed_whole, cost.whole)} "
                f"| {reached(cost.allowed, cost.decoder)} "
                f"| {median(cost.tax):.3f} | {median(cost.encoding):.3f} |",
                flush=True,
            )
