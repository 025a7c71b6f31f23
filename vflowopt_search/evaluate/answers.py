"""Greedy answers of a model without and with strategies, asked batch by batch and kept."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import transformers
from torch import nn

from vflowopt_search.adapters.base import Adapter
from vflowopt_search.adapters.feeding import feeding
from vflowopt_search.adapters.loading import pixel_scale
from vflowopt_search.adapters.registry import adapter_for, identity_of
from vflowopt_search.calibration.samples import Sample
from vflowopt_search.deploy import attached_engine
from vflowopt_search.errors import CalibrationError
from vflowopt_search.evaluate.ledger import Ledger
from vflowopt_search.evaluate.queue import Answer, Answered, Queue, Strategies
from vflowopt_search.pruning.occupied import refuse_if_pruned
from vflowopt_search.pruning.record import LastPrefill
from vflowopt_search.reference.attention_maps import AttentionMaps
from vflowopt_search.reference.encoder import Progress, prepare
from vflowopt_search.reference.fingerprint import (
    generation_sha256,
    processor_sha256,
    weights_sha256,
)
from vflowopt_search.reference.halving import Room, in_halves
from vflowopt_search.reference.prepared import batches
from vflowopt_search.reference.shelf import GB, MEMORY_GB, MemoryShelf
from vflowopt_search.reference.source import SignalSource
from vflowopt_search.search_space import ModelFacts
from vflowopt_search.selfcheck.check import require_checked
from vflowopt_search.strategy import Strategy


@dataclass(frozen=True)
class Asking:
    """A model and how it is asked.

    Attributes:
        processor: the model's.
        batch_size: samples to a batch; None chooses by prompt length.
        max_new_tokens: longest answer.
        strict: stop at the first sample that the processor does not take, instead of passing over
            it with every strategy.
    """

    model: nn.Module
    processor: Any
    batch_size: int | None = None
    max_new_tokens: int = 32
    strict: bool = False

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
    """What baselines have to know of a model."""
    adapter = adapter_for(model)
    return ModelFacts(
        identity=identity_of(model, name),
        pixels=None,
        vision_layers_available=adapter.vision_layers,
        packs_positions="packed" in adapter.family.positions,
        recycles=adapter.knows_grid,
        scores=adapter.family.scores,
    )


def ask(
    asking: Asking,
    samples: Sequence[Sample],
    strategies: Strategies,
    ledger: Ledger,
    progress: Progress | None = None,
) -> Answered:
    """Greedy answers to all samples under each strategy; what the ledger knows is not asked again.

    Images are encoded once for all strategies, and every batch is answered by all of them, so that
    their times can be compared. A sample that the processor does not take is asked of none.

    Args:
        asking: the model and how it is asked.
        samples: with or without labels.
        strategies: name to strategy, None for the unpruned model.
        ledger: keeps each batch as soon as it is answered.
        progress: called with (answers known, answers in total).

    Raises:
        ModelError: no adapter serves the model, it is pruned already, or a sample does not fit.
        EvaluationError: the ledger's file cannot be written.
        CalibrationError: the processor does not take more than a fifth of the samples, or,
            strictly, one of them.
    """
    refuse_if_pruned(asking.model)
    require_checked(adapter_for(asking.model), asking.processor)
    queue = Queue(samples, strategies, ledger, asking.settings(), asking.processor)
    while window := queue.next_window():
        try:
            source = _source(asking, [samples[i] for i in window])
        except CalibrationError:
            if asking.strict or not queue.leave_out_of(window):
                raise
            continue
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
    return queue.answered()


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
    answers: list[Answer] = []
    ask_some = partial(_answer_together, asking, source, strategy)
    for _, some in in_halves(rows, len(rows), ask_some, Room()):
        answers += some
    return answers


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
