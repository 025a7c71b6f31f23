"""Greedy answers of a model without and with strategies, asked batch by batch and kept."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers
from torch import nn

from vflowopt_search.adapters.base import Adapter
from vflowopt_search.adapters.feeding import feeding
from vflowopt_search.adapters.loading import pixel_scale
from vflowopt_search.adapters.registry import adapter_for, identity_of
from vflowopt_search.calibration.samples import Sample, fingerprint
from vflowopt_search.deploy import attached_engine
from vflowopt_search.errors import ModelError
from vflowopt_search.evaluate.ledger import Ledger
from vflowopt_search.pruning.occupied import refuse_if_pruned
from vflowopt_search.pruning.record import LastPrefill
from vflowopt_search.reference.attention_maps import AttentionMaps
from vflowopt_search.reference.encoder import Progress, first_with_same_images, prepare
from vflowopt_search.reference.fingerprint import generation_sha256, weights_sha256
from vflowopt_search.reference.prepared import batches
from vflowopt_search.reference.shelf import GB, MEMORY_GB, MemoryShelf
from vflowopt_search.reference.source import SignalSource
from vflowopt_search.reference.unpruned import processor_sha256
from vflowopt_search.search_space import ModelFacts
from vflowopt_search.selfcheck.check import require_checked
from vflowopt_search.strategy import Strategy

WINDOW = 256
"""Samples whose images are held encoded at a time."""

Strategies = Mapping[str, Strategy | None]
"""Name to strategy; None is the whole model."""


@dataclass(frozen=True)
class Answer:
    """What a model said.

    Attributes:
        text: the answer, special tokens left out.
        seconds: its share of the time that its batch took, vision encoder left out.
        retained: share of the sample's visual tokens alive, mean over layers; None without any.
        batch: of answers with the same batch, which met the same machine, times may be compared.
    """

    text: str
    seconds: float
    retained: float | None
    batch: str = ""


@dataclass(frozen=True)
class Asking:
    """A model and how it is asked.

    Attributes:
        processor: the model's.
        batch_size: samples to a batch; None chooses by prompt length.
        max_new_tokens: longest answer.
    """

    model: nn.Module
    processor: Any
    batch_size: int | None = None
    max_new_tokens: int = 32

    def settings(self) -> dict[str, Any]:
        """All that answers depend on besides strategy and sample, but the batches."""
        backbone = adapter_for(self.model).backbone
        return {
            "weights": weights_sha256(self.model),
            "processor": processor_sha256(self.processor),
            "dtype": str(backbone.dtype).removeprefix("torch."),
            "attention": str(backbone.config._attn_implementation),
            "transformers": transformers.__version__,
            "generation": generation_sha256(self.model),
            "decoding": {"greedy": True, "max_new_tokens": self.max_new_tokens},
        }


def facts_of(model: nn.Module, name: str | None = None) -> ModelFacts:
    """What plain strategies have to know of a model."""
    adapter = adapter_for(model)
    return ModelFacts(
        identity=identity_of(model, name),
        pixels=None,
        vision_layers_available=adapter.vision_layers,
        packs_positions="packed" in adapter.family.positions,
        recycles=adapter.knows_grid,
        scores=adapter.family.scores,
    )


def content_of(strategy: Strategy | None) -> dict[str, Any] | None:
    """What of a strategy decides what is pruned: all but its name, its claims and its origin."""
    return None if strategy is None else strategy.content()


def item_of(sample: Sample) -> str:
    """A sample's id and the fingerprint of what it asks and shows."""
    return f"{sample.id} {fingerprint([sample])[:16]}"


def ask(
    asking: Asking,
    samples: Sequence[Sample],
    strategies: Strategies,
    ledger: Ledger,
    progress: Progress | None = None,
) -> dict[str, list[Answer]]:
    """Greedy answers to all samples under each strategy; what the ledger knows is not asked again.

    Images are encoded once for all strategies, and every batch is answered by all of them, so that
    their times can be compared.

    Args:
        asking: the model and how it is asked.
        samples: with or without labels.
        strategies: name to strategy, None for the whole model.
        ledger: keeps each batch as soon as it is answered.
        progress: called with (answers known, answers in total).

    Raises:
        ModelError: no adapter serves the model, it is pruned already, or a sample does not fit.
        EvaluationError: the ledger's file cannot be written.
    """
    refuse_if_pruned(asking.model)
    require_checked(adapter_for(asking.model), asking.processor)
    queue = _Queue(asking, samples, strategies, ledger)
    while window := queue.next_window():
        source = _source(asking, [samples[i] for i in window])
        size = asking.batch_size or source.prepared.batch_size()
        for places in batches(len(window), size):
            batch = secrets.token_hex(4)
            for name in queue.in_turn():
                rows = [p for p in places if queue.is_missing(name, window[p])]
                if rows:
                    answers = _answer(asking, source, strategies[name], rows)
                    answers = [replace(answer, batch=batch) for answer in answers]
                    queue.file(name, [window[p] for p in rows], answers)
                if progress is not None:
                    progress(queue.known, queue.total)
    return queue.answers()


class _Queue:
    """Which answers are missing, and where those that came are kept."""

    def __init__(
        self, asking: Asking, samples: Sequence[Sample], strategies: Strategies, ledger: Ledger
    ) -> None:
        self._ledger, self._names, self._turn = ledger, list(strategies), 0
        # samples that show the same images follow each other: they are encoded once
        first = first_with_same_images(samples)
        self._order = sorted(range(len(samples)), key=lambda i: (first[i], i))
        self._items = [item_of(sample) for sample in samples]
        settings = asking.settings()
        self._headings = {
            name: ledger.heading(
                {"measured": "answers", **settings, "strategy": content_of(strategy)}
            )
            for name, strategy in strategies.items()
        }
        self.total = len(samples) * len(strategies)
        self.known = self.total - sum(
            self.is_missing(name, i) for name in self._names for i in self._order
        )

    def is_missing(self, name: str, index: int) -> bool:
        """Whether a strategy has not answered a sample yet."""
        return self._ledger.known(self._headings[name], self._items[index]) is None

    def next_window(self) -> list[int]:
        """The next samples that some strategy has not answered; empty at the end."""
        missing = (i for i in self._order if any(self.is_missing(n, i) for n in self._names))
        return [i for i, _ in zip(missing, range(WINDOW), strict=False)]

    def in_turn(self) -> Iterator[str]:
        """All strategies, each time another one first: no one always meets a cold machine."""
        self._turn += 1
        for place in range(len(self._names)):
            yield self._names[(place + self._turn - 1) % len(self._names)]

    def file(self, name: str, indices: Sequence[int], answers: Sequence[Answer]) -> None:
        """Keep the answers of a batch."""
        measured = {self._items[i]: vars(a) for i, a in zip(indices, answers, strict=True)}
        self._ledger.add(self._headings[name], measured)
        self.known += len(indices)

    def answers(self) -> dict[str, list[Answer]]:
        """All answers, in the order of the samples."""
        known = self._ledger.known
        return {
            name: [Answer(**known(heading, item) or {}) for item in self._items]
            for name, heading in self._headings.items()
        }


def _source(asking: Asking, samples: Sequence[Sample]) -> SignalSource:
    """Samples after the vision encoder, and their attention maps."""
    adapter = adapter_for(asking.model)
    pixels = pixel_scale(asking.processor) if adapter.knows_grid else None
    prepared = prepare(adapter, asking.processor, samples, pixels)
    shelf = MemoryShelf(round(GB * MEMORY_GB))
    maps = AttentionMaps(adapter, asking.processor, samples, prepared, shelf)
    return SignalSource(prepared, maps)


def _answer(
    asking: Asking, source: SignalSource, strategy: Strategy | None, rows: Sequence[int]
) -> list[Answer]:
    """Greedy answers to one batch, in halves if it does not fit in memory."""
    try:
        return _answer_together(asking, source, strategy, rows)
    except torch.OutOfMemoryError as error:
        if len(rows) == 1:
            raise ModelError(
                "one sample does not fit in memory; use a smaller dtype, smaller images or "
                "another device"
            ) from error
    half = len(rows) // 2
    return _answer(asking, source, strategy, rows[:half]) + _answer(
        asking, source, strategy, rows[half:]
    )


def _answer_together(
    asking: Asking, source: SignalSource, strategy: Strategy | None, rows: Sequence[int]
) -> list[Answer]:
    model: Any = asking.model
    adapter, last = source.prepared.adapter, None
    with ExitStack() as stack:
        if strategy is None:
            inputs = source.prepared.inputs(rows)
        else:
            engine = stack.enter_context(attached_engine(model, strategy))
            inputs = source.feed(engine, rows)
        stack.enter_context(torch.inference_mode())
        given = stack.enter_context(feeding(adapter, inputs))
        start = _clock(adapter)
        # one beam: older transformers cannot repeat features for more
        ids = model.generate(
            **given, max_new_tokens=asking.max_new_tokens, do_sample=False, num_beams=1
        )
        seconds = (_clock(adapter) - start) / len(rows)
        last = None if strategy is None else engine.applied.last
    new = ids[:, inputs["input_ids"].shape[1] :]
    texts = asking.processor.batch_decode(new, skip_special_tokens=True)
    retained = _retained(source, rows, last)
    return [
        Answer(text.strip(), round(seconds, 6), share)
        for text, share in zip(texts, retained, strict=True)
    ]


def _retained(
    source: SignalSource, rows: Sequence[int], last: LastPrefill | None
) -> list[float | None]:
    """Share of visual tokens alive of each sample, averaged over layers."""
    if last is None:
        return [1.0 if source.prepared.samples[row].images else None for row in rows]
    return [
        sum(alive) / len(alive) / total if total else None
        for alive, total in zip(last.tokens_per_layer, last.visual_tokens, strict=True)
    ]


def _clock(adapter: Adapter) -> float:
    """The time, once work that a GPU still has queued is done."""
    if adapter.backbone.device.type == "cuda":
        torch.cuda.synchronize(adapter.backbone.device)
    return time.perf_counter()
