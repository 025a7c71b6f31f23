"""What an engine is fed with: a batch of prepared samples, and the signals of their images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from typing import Any

from vflowopt_search.importance.context import ContextAttention
from vflowopt_search.pruning.mixed import MixedEngine
from vflowopt_search.pruning.scoring import Scoring
from vflowopt_search.pruning.single import PruningEngine
from vflowopt_search.reference.attention_maps import AttentionMaps
from vflowopt_search.reference.prepared import PreparedSet

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
