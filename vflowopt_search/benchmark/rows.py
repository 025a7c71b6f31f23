"""One row of a benchmark: a kind of prompt, answered by both models in alternation.

Shape suffixes: B = rows of a batch, S = tokens of a prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from vflowopt_search.adapters.base import Adapter
from vflowopt_search.benchmark.costs import decoder_cost
from vflowopt_search.benchmark.memory import peak_while
from vflowopt_search.benchmark.plan import Plan, Progress
from vflowopt_search.benchmark.prompts import Size
from vflowopt_search.benchmark.records import Row, Side, Spread
from vflowopt_search.benchmark.timing import Answer, timed_answer
from vflowopt_search.deploy import pruned
from vflowopt_search.memory_errors import is_out_of_memory
from vflowopt_search.pruning.record import LastPrefill
from vflowopt_search.strategy import Strategy


def nothing_removed(strategy: Strategy) -> str:
    """What is said of a strategy that would compare a model with itself."""
    return (
        f"strategy {strategy.name!r} removed no visual token, so that there is no speed-up to "
        "measure; check its keep ratios with `vflowopt-search show`"
    )


def nothing_freed(strategy: Strategy) -> str:
    """What is said where the engine counts fewer tokens, and the cache holds as much as before."""
    return (
        f"strategy {strategy.name!r} left the KV cache as large as that of the unpruned model, "
        "so that nothing it says about time would be a speed-up; check the model with "
        "`vflowopt-search doctor`"
    )


@dataclass
class _Measured:
    """What one side showed: its answers, its peak of memory, what happened, whether it fits."""

    answers: list[Answer] = field(default_factory=list)
    peak: int | None = None
    kv_bytes: int = 0
    last: LastPrefill | None = None
    fits: bool = True

    def run_out(self) -> None:
        """It has no room: what it answered until then is not compared."""
        self.fits = False
        self.answers.clear()


class Rows:
    """Measures one row after the other, and counts answers."""

    def __init__(
        self, adapter: Adapter, strategy: Strategy, plan: Plan, progress: Progress | None
    ) -> None:
        self.adapter, self.strategy, self.plan, self.progress = adapter, strategy, plan, progress
        self.cost = decoder_cost(adapter)
        self.done, self.total = 0, len(plan.kinds) * 2 * (plan.repeats + 1)

    def row(self, inputs: dict[str, Any], size: Size) -> Row:
        """Measure one kind of prompt."""
        kind = _Kind.of(self.adapter, inputs, size)
        short = self._warm_up(inputs, prunes=True)
        if short.fits and not _removed(short.last):
            self._count(2 * self.plan.repeats + 1)
            return kind.row(retained=1.0, note=nothing_removed(self.strategy))
        whole = self._warm_up(inputs, prunes=False)
        if short.fits and whole.fits and short.kv_bytes >= whole.kv_bytes:
            self._count(2 * self.plan.repeats)
            return kind.row(note=nothing_freed(self.strategy))
        self._repeat(inputs, {False: whole, True: short})
        depth = len(self.adapter.decoder_layers)
        alive = short.last.tokens_per_layer[0] if short.last else []
        unpruned = self._side(kind, whole, [kind.visual_tokens] * depth)
        pruned_side = self._side(kind, short, alive)
        retained = sum(alive) / (depth * kind.visual_tokens) if short.last else None
        ratios = _ratios(whole.answers, short.answers, unpruned, pruned_side)
        return kind.row(
            retained=retained,
            unpruned=unpruned,
            pruned=pruned_side,
            note=_no_room(whole, short),
            **ratios,
        )

    def _repeat(self, inputs: dict[str, Any], sides: dict[bool, _Measured]) -> None:
        """Let both sides answer in alternation."""
        for number in range(self.plan.repeats):
            for prunes in (False, True) if number % 2 else (True, False):
                side = sides[prunes]
                if not side.fits:
                    continue
                try:
                    side.answers.append(self._answer(inputs, prunes=prunes)[0])
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    side.run_out()
                    self._count(self.plan.repeats - number)

    def _warm_up(self, inputs: dict[str, Any], *, prunes: bool) -> _Measured:
        """The first answer, in which memory is measured; it also sets up kernels and caches."""
        found = _Measured()

        def work() -> None:
            answer, found.last = self._answer(inputs, prunes=prunes)
            found.kv_bytes = answer.kv_bytes

        try:
            found.peak = peak_while(work, self.adapter.backbone.device)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            found.run_out()
            self._count(1 + self.plan.repeats)
        return found

    def _answer(self, inputs: dict[str, Any], *, prunes: bool) -> tuple[Answer, LastPrefill | None]:
        with pruned(self.adapter.model, self.strategy) if prunes else nullcontext() as applied:
            answer = timed_answer(self.adapter, inputs, self.plan.new_tokens)
        self._count(1)
        return answer, None if applied is None else applied.last

    def _count(self, answers: int) -> None:
        self.done += answers
        if self.progress is not None:
            self.progress(self.done, self.total)

    def _side(self, kind: _Kind, found: _Measured, alive: Sequence[int]) -> Side | None:
        answers = found.answers
        if not answers:
            return None
        flops = None
        if self.cost is not None:
            flops = kind.batch_size * self.cost.prefill_flops(alive, kind.text_tokens)
        return Side(
            visual_per_layer=tuple(alive),
            first_token_s=Spread.of([one.first_token for one in answers]),
            encoding_s=Spread.of([one.encoding for one in answers]),
            decoder_s=Spread.of([one.decoder for one in answers]),
            decode_tokens_per_s=Spread.of([kind.batch_size / one.per_step for one in answers]),
            end_to_end_s=Spread.of([one.whole for one in answers]),
            kv_bytes=answers[0].kv_bytes,
            peak_bytes=found.peak,
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

    scoring = scoring_seconds(whole, short)

    def of(seconds: Callable[[Answer], float], more: float = 0.0) -> Spread:
        pairs = zip(whole, short, strict=True)
        return Spread.of([seconds(a) / (seconds(b) + more) for a, b in pairs])

    decoder = of(lambda answer: answer.decoder, more=scoring)
    possible = None
    if unpruned.prefill_flops is not None and side.prefill_flops is not None:
        possible = unpruned.prefill_flops / side.prefill_flops
    return {
        "scoring_s": scoring,
        "first_token_speed_up": of(lambda answer: answer.first_token),
        "decoder_speed_up": decoder,
        "decode_speed_up": of(lambda answer: answer.per_step),
        "end_to_end_speed_up": of(lambda answer: answer.whole),
        "possible_speed_up": possible,
        "share_reached": None if possible is None else decoder.median / possible,
    }


def scoring_seconds(whole: Sequence[Answer], short: Sequence[Answer]) -> float:
    """Seconds that reading scores adds to the vision encoder: median over pairs, at least 0."""
    pairs = zip(whole, short, strict=True)
    return max(0.0, median([b.encoding - a.encoding for a, b in pairs]))


def _no_room(whole: _Measured, short: _Measured) -> str | None:
    """Which side ran out of memory."""
    full = [name for name, side in (("unpruned", whole), ("pruned", short)) if not side.fits]
    return f"out of memory: {' and '.join(full)}" if full else None
