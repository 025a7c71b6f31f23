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
import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor

from tests.bench.subjects import SUBJECTS, Subject, onevision_half_billion
from vflowopt_search.adapters.registry import adapter_for
from vflowopt_search.benchmark.costs import decoder_shape
from vflowopt_search.budget import ModelShape, VisionShape, prefill_flops
from vflowopt_search.calibration.encoding import encode
from vflowopt_search.deploy import pruned
from vflowopt_search.pruning.record import LastPrefill
from vflowopt_search.strategy import Importance, Stage, Strategy

STAGES: dict[str, tuple[tuple[float, float], ...]] = {
    "one stage": ((0.0, 0.10),),
    "three stages": ((0.0, 0.16), (1 / 3, 0.6), (2 / 3, 0.3)),
}
"""Depth of each stage as a share of the decoder's, and its keep ratio: a mean of about 0.10."""

FIRST_WORD = 8
"""Token id; text of prompts without images is made of this one."""


SHORT_TOWER = {"onevision-0.5b": partial(onevision_half_billion, vision_layers=2)}
"""Subjects for what comes after the vision encoder; most of its layers only take time."""

ROUND = 100
"""Decode steps after which a prompt is read anew, so that answers do not outgrow prompts."""

WARM_UP = 4
"""Decode steps of each round that are not counted."""


def strategy_on(subject: Subject, stages: str) -> Strategy:
    """A strategy of these stages, scored by received attention, without recycling."""
    adapter = adapter_for(subject.model)
    depth = len(adapter.decoder_layers)
    return Strategy(
        name=stages,
        importance=Importance(vision_layer=adapter.vision_layers[-1], context_threshold=1.1),
        stages=tuple(
            Stage(layer=round(share * depth), keep_ratio=ratio) for share, ratio in STAGES[stages]
        ),
    )


def twin(model: Any) -> Any:
    """The same model as a module of its own: a copy that shares all weights."""
    shared = {id(one): one for one in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, memo=dict(shared))


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


def text_prompt(last: LastPrefill) -> dict[str, Tensor]:
    """A left-padded prompt without images whose rows hold as many tokens as pruned rows do.

    Where layers hold different numbers, their mean.
    """
    lengths = [
        text + round(sum(visual) / len(visual))
        for text, visual in zip(last.text_tokens, last.tokens_per_layer, strict=True)
    ]
    place_S = torch.arange(max(lengths))
    mask_BS = (place_S >= max(lengths) - torch.tensor(lengths)[:, None]).long()
    return {"input_ids": torch.full_like(mask_BS, FIRST_WORD), "attention_mask": mask_BS}


def batch_of(subject: Subject, rows: int, *, ragged: bool) -> dict[str, Any]:
    """The processor's output for some samples; rows that are not ragged are all the same one."""
    samples = subject.samples.samples[:rows] if ragged else subject.samples.samples[:1] * rows
    return dict(encode(subject.processor, list(samples)))


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
    """Unpruned and pruned prefill by turns."""
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


def spread(values: list[float]) -> str:
    """Median and quartiles."""
    low, _, high = quantiles(values, n=4)
    return f"{median(values):.3f} | {low:.3f} .. {high:.3f}"


def reached(allowed: float, speed_ups: list[float]) -> str:
    """The speed-up that the FLOPs allow, the measured one and its share of that."""
    return f"{allowed:.2f} | {spread(speed_ups)} | {median(speed_ups) / allowed:.1%}"


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
