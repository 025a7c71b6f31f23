"""One row of a benchmark: a kind of prompt, answered by the whole and the pruned model by turns.

Shape suffixes: B = rows of a batch, S = tokens of a prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from vflowopt_search.adapters.base import Adapter
from vflowopt_search.benchmark.costs import decoder_shape
from vflowopt_search.benchmark.memory import peak_while
from vflowopt_search.benchmark.plan import Plan, Progress
from vflowopt_search.benchmark.prompts import Size
from vflowopt_search.benchmark.records import Row, Side, Spread
from vflowopt_search.benchmark.timing import Answer, timed_answer
from vflowopt_search.budget import prefill_flops
from vflowopt_search.deploy import pruned
from vflowopt_search.pruning.record import LastPrefill
from vflowopt_search.strategy import Strategy


def nothing_removed(strategy: Strategy) -> str:
    """What is said of a strategy that would compare a model with itself."""
    return (
        f"strategy {strategy.name!r} removed no visual token, so that there is no speed-up to "
        "measure; check its keep ratios with `vflowopt-search show`"
    )


@dataclass(frozen=True)
class _WarmUp:
    """What the first answer of a side told: its peak of memory, what happened, whether it fits."""

    peak: int | None = None
    last: LastPrefill | None = None
    fits: bool = True


class Rows:
    """Measures one row after the other, and counts answers."""

    def __init__(
        self, adapter: Adapter, strategy: Strategy, plan: Plan, progress: Progress | None
    ) -> None:
        self.adapter, self.strategy, self.plan, self.progress = adapter, strategy, plan, progress
        self.shape = decoder_shape(adapter)
        self.done, self.total = 0, len(plan.kinds) * 2 * (plan.repeats + 1)

    def row(self, inputs: dict[str, Any], size: Size) -> Row:
        """Measure one kind of prompt."""
        kind = _Kind.of(self.adapter, inputs, size)
        short = self._warm_up(inputs, prunes=True)
        if short.fits and not _removed(short.last):
            self._count(2 * self.plan.repeats + 1)
            return kind.row(retained=1.0, note=nothing_removed(self.strategy))
        whole = self._warm_up(inputs, prunes=False)
        sides = {False: whole, True: short}
        answers: dict[bool, list[Answer]] = {prunes: [] for prunes in sides}
        for number in range(self.plan.repeats):
            for prunes in (False, True) if number % 2 else (True, False):
                if sides[prunes].fits:
                    answers[prunes].append(self._answer(inputs, prunes=prunes)[0])
        depth = len(self.adapter.decoder_layers)
        alive = short.last.tokens_per_layer[0] if short.last else []
        unpruned = self._side(kind, answers[False], whole, [kind.visual_tokens] * depth)
        pruned_side = self._side(kind, answers[True], short, alive)
        retained = sum(alive) / (depth * kind.visual_tokens) if short.last else None
        ratios = _ratios(answers[False], answers[True], unpruned, pruned_side)
        return kind.row(
            retained=retained,
            unpruned=unpruned,
            pruned=pruned_side,
            note=_no_room(whole, short),
            **ratios,
        )

    def _warm_up(self, inputs: dict[str, Any], *, prunes: bool) -> _WarmUp:
        """The first answer, in which memory is measured; it also sets up kernels and caches."""
        found: list[LastPrefill | None] = []

        def work() -> None:
            found.append(self._answer(inputs, prunes=prunes)[1])

        try:
            peak = peak_while(work, self.adapter.backbone.device)
        except torch.OutOfMemoryError:
            self._count(1 + self.plan.repeats)
            return _WarmUp(fits=False)
        return _WarmUp(peak, found[0])

    def _answer(self, inputs: dict[str, Any], *, prunes: bool) -> tuple[Answer, LastPrefill | None]:
        with pruned(self.adapter.model, self.strategy) if prunes else nullcontext() as applied:
            answer = timed_answer(self.adapter, inputs, self.plan.new_tokens)
        self._count(1)
        return answer, None if applied is None else applied.last

    def _count(self, answers: int) -> None:
        self.done += answers
        if self.progress is not None:
            self.progress(self.done, self.total)

    def _side(
        self, kind: _Kind, answers: Sequence[Answer], start: _WarmUp, alive: Sequence[int]
    ) -> Side | None:
        if not answers:
            return None
        flops = None
        if self.shape is not None:
            flops = kind.batch_size * prefill_flops(self.shape, alive, kind.text_tokens)
        return Side(
            visual_per_layer=tuple(alive),
            first_token_s=Spread.of([one.first_token for one in answers]),
            encoding_s=Spread.of([one.encoding for one in answers]),
            decoder_s=Spread.of([one.decoder for one in answers]),
            decode_tokens_per_s=Spread.of([kind.batch_size / one.per_step for one in answers]),
            end_to_end_s=Spread.of([one.whole for one in answers]),
            kv_bytes=answers[0].kv_bytes,
            peak_bytes=start.peak,
            prefill_flops=flops,
        )


@dataclass(frozen=True)
class _Kind:
    """One kind of prompt; all rows of a batch are alike."""

    batch_size: int
    size: Size
    visual_tokens: int
    text_tokens: int

    @classmethod
    def of(cls, adapter: Adapter, inputs: dict[str, Any], size: Size) -> _Kind:
        ids_BS = inputs["input_ids"]
        visual = int((ids_BS[0] == adapter.image_token_id).sum())
        return cls(len(ids_BS), size, visual, int(inputs["attention_mask"][0].sum()) - visual)

    def row(self, **measured: Any) -> Row:
        """The row with what was measured; the rest is null."""
        empty: dict[str, Any] = dict.fromkeys(Row.model_fields)
        width, height = self.size
        said = {"width": width, "height": height, "batch_size": self.batch_size}
        tokens = {"visual_tokens": self.visual_tokens, "text_tokens": self.text_tokens}
        return Row(**(empty | said | tokens | measured))


def _removed(last: LastPrefill | None) -> bool:
    """Whether every prompt lost visual tokens."""
    if last is None:
        return False
    rows = zip(last.tokens_per_layer, last.visual_tokens, strict=True)
    return all(min(alive) < total for alive, total in rows)


def _ratios(
    whole: Sequence[Answer], short: Sequence[Answer], unpruned: Side | None, side: Side | None
) -> dict[str, Any]:
    """Of answers that stood side by side; nothing where a side is missing."""
    if unpruned is None or side is None:
        return {}

    def of(seconds: Callable[[Answer], float]) -> Spread:
        return Spread.of([seconds(a) / seconds(b) for a, b in zip(whole, short, strict=True)])

    decoder = of(lambda answer: answer.decoder)
    possible = None
    if unpruned.prefill_flops is not None and side.prefill_flops is not None:
        possible = unpruned.prefill_flops / side.prefill_flops
    return {
        "first_token_speed_up": of(lambda answer: answer.first_token),
        "decoder_speed_up": decoder,
        "decode_speed_up": of(lambda answer: answer.per_step),
        "end_to_end_speed_up": of(lambda answer: answer.whole),
        "possible_speed_up": possible,
        "share_reached": None if possible is None else decoder.median / possible,
    }


def _no_room(whole: _WarmUp, short: _WarmUp) -> str | None:
    """Which side ran out of memory."""
    full = [name for name, side in (("unpruned", whole), ("pruned", short)) if not side.fits]
    return f"out of memory: {' and '.join(full)}" if full else None
