"""A strategy in, the divergence of each calibration sample out; knows no Optuna.

Shape suffixes: B = samples of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vflowopt_search.adapters.base import Adapter
from vflowopt_search.adapters.loading import pixel_scale
from vflowopt_search.adapters.registry import adapter_for, identity_of
from vflowopt_search.calibration.samples import CalibrationSet
from vflowopt_search.deploy import attached_together
from vflowopt_search.divergence import divergence
from vflowopt_search.errors import CacheError, ModelError
from vflowopt_search.importance.context import ContextAttention
from vflowopt_search.pruning.mixed import MixedEngine
from vflowopt_search.pruning.occupied import refuse_if_pruned
from vflowopt_search.pruning.scoring import Scoring
from vflowopt_search.pruning.single import PruningEngine
from vflowopt_search.reference.attention_maps import AttentionMaps
from vflowopt_search.reference.encoder import Progress
from vflowopt_search.reference.placement import settled
from vflowopt_search.reference.prepared import PreparedSet
from vflowopt_search.reference.readout import NEEDS_LAYERS, NEEDS_LOGITS, read_out
from vflowopt_search.reference.shelf import (
    DISK_GB,
    GB,
    MEMORY_GB,
    CacheFolder,
    DiskShelf,
    MemoryShelf,
    Shelf,
)
from vflowopt_search.reference.unpruned import Reference, build_reference, key_digest
from vflowopt_search.search_space import ModelFacts
from vflowopt_search.selfcheck.check import require_checked
from vflowopt_search.strategy import Strategy

Row = tuple[int, int]
"""Of a batch: number of a strategy, number of a sample."""
KnownAttention = dict[tuple[int, tuple[int, ...]], dict[str, tuple[ContextAttention, ...]]]
"""Vision layer and samples to their maps by kind."""


class SignalSource:
    """Signals of prepared samples, with the attention maps that an engine's scores need."""

    def __init__(self, prepared: PreparedSet, maps: AttentionMaps) -> None:
        self.prepared, self.maps = prepared, maps

    def feed(self, engine: PruningEngine, indices: Sequence[int]) -> dict[str, Any]:
        """Give the engine the signals of a batch; returns the batch for the model."""
        engine.scoring.forget_images()
        self._provide(engine.scoring, indices, {})
        return self.prepared.inputs(indices)

    def feed_rows(self, engine: MixedEngine, rows: Sequence[Row]) -> dict[str, Any]:
        """The same where the rows of each strategy stand together."""
        engine.scoring.forget_images()
        engine.assign([number for number, _ in rows])
        known: KnownAttention = {}
        for number, mine in groupby(rows, key=itemgetter(0)):
            self._provide(engine.scoring.parts[number], [sample for _, sample in mine], known)
        return self.prepared.inputs([sample for _, sample in rows])

    def _provide(self, scoring: Scoring, indices: Sequence[int], known: KnownAttention) -> None:
        """Give a strategy's scoring the signals of its rows; strategies share what is known."""
        layer = scoring.recorder.layer
        attention: Mapping[str, tuple[ContextAttention, ...]] = {}
        if layer is not None:
            wanted = (layer, tuple(indices))
            if wanted not in known:
                known[wanted] = self.maps.attention(layer, indices)
            attention = known[wanted]
        for kind, signals in self.prepared.signals(indices).items():
            scoring.provide(replace(signals, attention=attention.get(kind)), kind)


class Room:
    """How many rows are run together: what was asked, less what did not fit in memory before."""

    def __init__(self) -> None:
        self.most: int | None = None

    def rows(self, asked: int) -> int:
        """Rows of the next batch, of the number asked."""
        return asked if self.most is None else min(asked, self.most)

    def was_too_small(self, num_rows: int) -> None:
        """Remember that so many rows did not fit; half of them may."""
        self.most = (num_rows + 1) // 2


@dataclass(frozen=True, eq=False)
class Objective:
    """Divergence of pruned from unpruned on a calibration set (VFlowOpt section 1.5).

    Attributes:
        adapter: the model.
        facts: what a search space has to know of it.
        reference: the unpruned model's readout.
        source: signals of the samples.
        metric: one of `divergence.METRICS`.
        batch_size: samples that are run together, of each strategy.
        room: what is known of the memory; shared by all measurements.
    """

    adapter: Adapter
    facts: ModelFacts
    reference: Reference
    source: SignalSource
    metric: str
    batch_size: int
    room: Room = field(default_factory=Room)

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
        """Divergence of each of the samples `indices` under `strategy`; see `measure_many`."""
        return self.measure_many([strategy], indices)[0]

    def measure_many(
        self, strategies: Sequence[Strategy], indices: Sequence[int]
    ) -> list[list[float]]:
        """Divergence of each of the samples `indices` under each strategy, all rows together.

        Features come from the reference; the vision encoder runs only for attention maps that
        are not held yet (see `AttentionMaps`). Prompts of like length share a batch. One that
        does not fit in memory is halved, and no later one is larger than what fitted.

        Raises:
            DivergenceError: a sample's divergence under one of the strategies is not finite.
            ModelError: a single sample does not fit in memory.
        """
        asked = self.batch_size * len(strategies)
        left = self._by_length(len(strategies), indices)
        found: dict[Row, float] = {}
        with attached_together(self.adapter.model, strategies) as engine:
            while left:
                # a strategy's rows stand together
                rows = sorted(left[: self.room.rows(asked)], key=itemgetter(0))
                values = self._measure_rows(engine, rows)
                if values is None:
                    self.room.was_too_small(len(rows))
                    continue
                found |= zip(rows, values, strict=True)
                left = left[len(rows) :]
        return [[found[number, i] for i in indices] for number in range(len(strategies))]

    def _by_length(self, num_strategies: int, indices: Sequence[int]) -> list[Row]:
        """Each of the samples once for each strategy, short prompts first."""
        samples = self.reference.prepared.samples
        ordered = sorted(dict.fromkeys(indices), key=lambda i: len(samples[i].input_ids))
        return [(number, i) for i in ordered for number in range(num_strategies)]

    def _measure_rows(self, engine: MixedEngine, rows: Sequence[Row]) -> list[float] | None:
        """Divergence of each row of one batch; None if it does not fit in memory."""
        layers, logits = self.metric in NEEDS_LAYERS, self.metric in NEEDS_LOGITS
        samples = [sample for _, sample in rows]
        try:
            inputs = self.source.feed_rows(engine, rows)
            pruned = read_out(self.adapter, inputs, layers=layers, logits=logits)
            unpruned = self.reference.rows(samples, pruned.hidden_BLD.device)
            values: list[float] = divergence(self.metric, unpruned, pruned).tolist()
        except torch.OutOfMemoryError as error:
            if len(rows) == 1:
                raise ModelError(
                    f"one sample (number {samples[0]}) does not fit in memory; use a smaller "
                    "dtype, smaller images or another device"
                ) from error
            return None
        return values


def build_objective(
    model: nn.Module,
    processor: Any,
    calibration: CalibrationSet,
    *,
    metric: str = "last_token_cosine",
    batch_size: int | None = None,
    cache: Path | None = None,
    cache_gb: float | None = None,
    progress: Progress | None = None,
    name: str | None = None,
) -> Objective:
    """Encode the calibration set, run the unpruned model on it once, and be ready for strategies.

    Args:
        model: a loaded model of a supported family.
        processor: its processor.
        calibration: the samples.
        metric: one of `divergence.METRICS`.
        batch_size: samples to a batch; chosen by prompt length when None.
        cache: folder of what no strategy changes: features, the unpruned model's results and
            attention maps, shared by all runs and processes; None keeps it in memory.
        cache_gb: bound on the folder, 20 when None; what was not used for longest goes first.
            Without a folder, on the attention maps in memory, 4 when None.
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
    folder = None if cache is None else cache_folder(cache, cache_gb)
    reference = build_reference(
        adapter, processor, calibration, pixels, cache=folder, progress=progress
    )
    prepared = settled(reference.prepared)
    shelf = map_shelf(reference.key, folder, cache_gb)
    maps = AttentionMaps(adapter, processor, calibration.samples, prepared, shelf)
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
    )


def cache_folder(root: Path, cache_gb: float | None) -> CacheFolder:
    """The cache under `root`, bounded.

    Raises:
        CacheError: the bound is not positive.
    """
    if cache_gb is not None and not cache_gb > 0:
        raise CacheError(f"the cache may hold {cache_gb} GB, but must hold some; allow more")
    return CacheFolder(root, round(GB * (DISK_GB if cache_gb is None else cache_gb)))


OF_THE_SAMPLES = frozenset({"calibration", "first_inputs"})
"""Parts of a reference's key that an image's attention map does not depend on."""


def map_shelf(key: Mapping[str, str], folder: CacheFolder | None, cache_gb: float | None) -> Shelf:
    """Where the attention maps of one model are kept, whatever the samples."""
    if folder is None:
        return MemoryShelf(round(GB * (MEMORY_GB if cache_gb is None else cache_gb)))
    of_the_model = {name: value for name, value in key.items() if name not in OF_THE_SAMPLES}
    return DiskShelf(folder.root / "maps" / key_digest(of_the_model), folder)
