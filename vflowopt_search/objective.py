"""A strategy in, the divergence of each calibration sample out; knows no Optuna.

Shape suffixes: B = samples of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vflowopt_search.adapters.base import Adapter
from vflowopt_search.adapters.loading import pixel_scale
from vflowopt_search.adapters.registry import adapter_for, identity_of
from vflowopt_search.calibration.samples import CalibrationSet
from vflowopt_search.deploy import attached_engine
from vflowopt_search.divergence import ANSWER_METRICS, divergence
from vflowopt_search.errors import ModelError
from vflowopt_search.pruning.engine import PruningEngine
from vflowopt_search.pruning.occupied import refuse_if_pruned
from vflowopt_search.reference.along_answer import (
    AnswerReference,
    answer_divergences,
    build_answers,
    decoded,
)
from vflowopt_search.reference.attention_maps import AttentionMaps
from vflowopt_search.reference.encoder import Progress
from vflowopt_search.reference.prepared import PreparedSet, batches
from vflowopt_search.reference.readout import NEEDS_LAYERS, NEEDS_LOGITS, read_out
from vflowopt_search.reference.unpruned import Reference, build_reference
from vflowopt_search.search_space import ModelFacts
from vflowopt_search.selfcheck.check import require_checked
from vflowopt_search.strategy import Strategy

MAPS_BYTES = 4 * 2**30


class SignalSource:
    """Signals of prepared samples, with the attention maps that an engine's scores need."""

    def __init__(self, prepared: PreparedSet, maps: AttentionMaps) -> None:
        self.prepared, self.maps = prepared, maps

    def feed(self, engine: PruningEngine, indices: Sequence[int]) -> dict[str, Any]:
        """Give the engine the signals of a batch; returns the batch for the model."""
        layer = engine.scoring.recorder.layer
        engine.scoring.forget_images()
        attention = {} if layer is None else self.maps.attention(layer, indices)
        for kind, signals in self.prepared.signals(indices).items():
            engine.scoring.provide(replace(signals, attention=attention.get(kind)), kind)
        return self.prepared.inputs(indices)


@dataclass(frozen=True, eq=False)
class Objective:
    """Divergence of pruned from unpruned on a calibration set (VFlowOpt section 1.5).

    Attributes:
        adapter: the model.
        facts: what a search space has to know of it.
        reference: the unpruned model's readout.
        source: signals of the samples.
        metric: one of `divergence.METRICS` or `divergence.ANSWER_METRICS`.
        batch_size: samples that are run together.
        answers: the unpruned model along its answers; None with metrics of the last prompt token.
    """

    adapter: Adapter
    facts: ModelFacts
    reference: Reference
    source: SignalSource
    metric: str
    batch_size: int
    answers: AnswerReference | None = None

    @property
    def num_samples(self) -> int:
        """Size of the calibration set."""
        return len(self.reference.prepared)

    @property
    def fingerprint(self) -> dict[str, str]:
        """Weights, processor and dtype: with any of them changed, values cannot be compared."""
        key = self.reference.key
        return {
            "weights_sha256": key["weights"],
            "processor_sha256": key["processor"],
            "dtype": key["dtype"],
        }

    def measure(self, strategy: Strategy, indices: Sequence[int]) -> list[float]:
        """Divergence of each of the samples `indices` under `strategy`.

        Features come from the reference; the vision encoder runs only for attention maps that
        are not held yet (see `AttentionMaps`). A batch that does not fit in memory is halved.

        Raises:
            DivergenceError: a sample's divergence is not finite.
            ModelError: a single sample does not fit in memory.
        """
        values: list[float] = []
        with attached_engine(self.adapter.model, strategy) as engine:
            for chunk in batches(len(indices), self.batch_size):
                values += self._measure_together(engine, [indices[i] for i in chunk])
        return values

    def _measure_together(self, engine: PruningEngine, rows: list[int]) -> list[float]:
        """Divergence of one batch, in halves if it does not fit in memory."""
        try:
            values = self._compare(rows, self.source.feed(engine, rows))
        except torch.OutOfMemoryError as error:
            if len(rows) == 1:
                raise ModelError(
                    f"one sample (number {rows[0]}) does not fit in memory; use a smaller dtype, "
                    "smaller images or another device"
                ) from error
        else:
            return values
        half = len(rows) // 2
        return self._measure_together(engine, rows[:half]) + self._measure_together(
            engine, rows[half:]
        )

    def _compare(self, rows: list[int], inputs: Mapping[str, Any]) -> list[float]:
        """Run the pruned model on a batch and compare it with the unpruned one."""
        device = self.adapter.backbone.device
        if self.answers is not None:
            said = self.answers.tokens(rows)
            _, _, pruned = decoded(self.adapter, inputs, said, layers=False)
            unpruned = self.answers.rows(rows, device)
            found = answer_divergences([self.metric], self.adapter, unpruned, pruned)[self.metric]
        else:
            layers, logits = self.metric in NEEDS_LAYERS, self.metric in NEEDS_LOGITS
            readout = read_out(self.adapter, inputs, layers=layers, logits=logits)
            found = divergence(self.metric, self.reference.rows(rows, device), readout)
        values: list[float] = found.tolist()
        return values


def build_objective(
    model: nn.Module,
    processor: Any,
    calibration: CalibrationSet,
    *,
    metric: str = "last_token_cosine",
    batch_size: int | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
    name: str | None = None,
) -> Objective:
    """Encode the calibration set, run the unpruned model on it once, and be ready for strategies.

    Args:
        model: a loaded model of a supported family.
        processor: its processor.
        calibration: the samples.
        metric: one of `divergence.METRICS` or `divergence.ANSWER_METRICS`.
        batch_size: samples to a batch; chosen by prompt length when None.
        cache: folder in which the unpruned model's results are kept; None keeps nothing.
        progress: called with (samples done, samples in total) while the reference is computed.
        name: the model's name for strategy files; where it was loaded from when None.

    Raises:
        ModelError: no adapter serves the model, it fails its self-check, or it is pruned already.
        CacheError: the cache folder cannot be written.
    """
    refuse_if_pruned(model)
    adapter = adapter_for(model)
    require_checked(adapter, processor)
    pixels = pixel_scale(processor) if adapter.knows_grid else None
    reference = build_reference(
        adapter, processor, calibration, pixels, cache=cache, progress=progress
    )
    prepared, answers = reference.prepared, None
    if metric in ANSWER_METRICS:
        answers = build_answers(prepared, reference.key, cache=cache, progress=progress)
    maps = AttentionMaps(adapter, processor, calibration.samples, prepared, limit_bytes=MAPS_BYTES)
    facts = ModelFacts(
        identity=identity_of(model, name),
        pixels=pixels,
        vision_layers_available=adapter.vision_layers,
        packs_positions="packed" in adapter.family.positions,
        recycles=adapter.knows_grid,
        scores=adapter.family.scores,
        has_separators=any(
            bool(image.grid.separator_N.any()) for s in prepared.samples for image in s.images
        ),
    )
    return Objective(
        adapter=adapter,
        facts=facts,
        reference=reference,
        source=SignalSource(prepared, maps),
        metric=metric,
        batch_size=batch_size or prepared.batch_size(),
        answers=answers,
    )
