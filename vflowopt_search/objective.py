"""A strategy in, the divergence of each calibration sample out; knows no Optuna.

Shape suffixes: B = samples of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vflowopt_search.adapters.base import Adapter
from vflowopt_search.adapters.loading import pixel_scale
from vflowopt_search.adapters.registry import adapter_for, identity_of
from vflowopt_search.calibration.refusals import taken_by
from vflowopt_search.calibration.samples import CalibrationSet
from vflowopt_search.deploy import attached_engine, attached_together
from vflowopt_search.divergence import ANSWER_METRICS, divergence
from vflowopt_search.errors import CalibrationError
from vflowopt_search.pruning.mixed import MixedEngine
from vflowopt_search.pruning.occupied import refuse_if_pruned
from vflowopt_search.pruning.single import PruningEngine
from vflowopt_search.reference.along_answer import (
    AnswerReference,
    answer_divergences,
    build_answers,
    decoded,
)
from vflowopt_search.reference.attention_maps import AttentionMaps
from vflowopt_search.reference.encoder import Progress
from vflowopt_search.reference.halving import Room, in_halves
from vflowopt_search.reference.offered_layers import OfferedLayers
from vflowopt_search.reference.placement import settled, settled_readout
from vflowopt_search.reference.prepared import PreparedSet
from vflowopt_search.reference.readout import NEEDS_LAYERS, NEEDS_LOGITS, read_out
from vflowopt_search.reference.shelf import cache_folder, map_shelf
from vflowopt_search.reference.source import Row, SignalSource
from vflowopt_search.reference.unpruned import Reference, build_reference
from vflowopt_search.search_space import ModelFacts
from vflowopt_search.selfcheck.check import require_checked
from vflowopt_search.strategy import ModelIdentity, PixelScale, Strategy


@dataclass(frozen=True, eq=False)
class Objective:
    """Divergence of pruned from unpruned on a calibration set (VFlowOpt section 1.5).

    Attributes:
        adapter: the model.
        facts: what a search space has to know of it.
        calibration: the samples, without those that the processor does not take.
        reference: the unpruned model's readout.
        source: signals of the samples.
        metric: one of `divergence.METRICS` or `divergence.ANSWER_METRICS`.
        batch_size: samples that are run together, of each strategy.
        answers: the unpruned model along its answers; None with metrics of the last prompt token.
        room: what is known of the memory; shared by all measurements.
    """

    adapter: Adapter
    facts: ModelFacts
    calibration: CalibrationSet
    reference: Reference
    source: SignalSource
    metric: str
    batch_size: int
    answers: AnswerReference | None = None
    room: Room = field(default_factory=Room)

    @property
    def num_samples(self) -> int:
        """Size of the calibration set."""
        return len(self.reference.prepared)

    @property
    def visual_tokens(self) -> tuple[int, int]:
        """Visual tokens of the sample that has the fewest, and of the one that has the most."""
        samples = self.reference.prepared.samples
        counts = [sum(len(image.grid) for image in sample.images) for sample in samples]
        return min(counts), max(counts)

    @property
    def fingerprint(self) -> dict[str, str]:
        """Weights, processor and dtype: with any of them changed, values cannot be compared.

        Also the vision layers that there is room for, where not for all: a depth means one of them.
        """
        key, layers = self.reference.key, self.facts.vision_layers_available
        chosen = {"vision_layers": ",".join(map(str, layers))}
        return {
            "weights_sha256": key["weights"],
            "processor_sha256": key["processor"],
            "dtype": key["dtype"],
            **({} if self.answers is None else {"generation_sha256": self.answers.generation}),
            **({} if layers == tuple(self.adapter.vision_layers) else chosen),
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
            OutOfMemoryError: a single sample does not fit in memory.
        """
        rows = self._by_length(len(strategies), indices)
        if self.answers is None:
            with attached_together(self.adapter.model, strategies) as engine:
                asked = self.batch_size * len(strategies)
                found = self._in_batches(rows, asked, partial(self._at_prompt, engine))
        else:
            found = self._along(self.answers, strategies, rows)
        return [[found[number, i] for i in indices] for number in range(len(strategies))]

    def _by_length(self, num_strategies: int, indices: Sequence[int]) -> list[Row]:
        """Each of the samples once for each strategy, short prompts first."""
        samples = self.reference.prepared.samples
        ordered = sorted(dict.fromkeys(indices), key=lambda i: len(samples[i].input_ids))
        return [(number, i) for i in ordered for number in range(num_strategies)]

    def _in_batches(
        self, rows: Sequence[Row], asked: int, measure: Callable[[Sequence[Row]], Tensor]
    ) -> dict[Row, float]:
        """Divergence of each row, `asked` of them at a time, or as many as fit in memory."""

        def measured(batch: Sequence[Row]) -> dict[Row, float]:
            rows = sorted(batch, key=itemgetter(0))  # a strategy's rows stand together
            return dict(zip(rows, measure(rows).tolist(), strict=True))

        found: dict[Row, float] = {}
        for _, values in in_halves(rows, asked, measured, self.room, number=itemgetter(1)):
            found |= values
        return found

    def _at_prompt(self, engine: MixedEngine, rows: Sequence[Row]) -> Tensor:
        """Divergence at the last prompt token of each row of a batch, (B,)."""
        layers, logits = self.metric in NEEDS_LAYERS, self.metric in NEEDS_LOGITS
        inputs = self.source.feed_rows(engine, rows)
        pruned = read_out(self.adapter, inputs, layers=layers, logits=logits)
        unpruned = self.reference.rows(
            [i for _, i in rows], pruned.hidden_BLD.device, layers=layers, logits=logits
        )
        return divergence(self.metric, unpruned, pruned)

    def _along(
        self, answers: AnswerReference, strategies: Sequence[Strategy], rows: Sequence[Row]
    ) -> dict[Row, float]:
        """Divergence along the answers; one strategy after the other, for each has its cache."""
        found: dict[Row, float] = {}
        for number, strategy in enumerate(strategies):
            mine = [row for row in rows if row[0] == number]
            with attached_engine(self.adapter.model, strategy) as engine:
                measure = partial(self._along_answers, answers, engine)
                found |= self._in_batches(mine, self.batch_size, measure)
        return found

    def _along_answers(
        self, answers: AnswerReference, engine: PruningEngine, rows: Sequence[Row]
    ) -> Tensor:
        """Divergence along the answers of one batch of one strategy, (B,)."""
        samples = [i for _, i in rows]
        inputs = self.source.feed(engine, samples)
        _, _, pruned = decoded(self.adapter, inputs, answers.tokens(samples), layers=False)
        unpruned = answers.rows(samples, self.adapter.backbone.device)
        return answer_divergences([self.metric], self.adapter, unpruned, pruned)[self.metric]


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
    strict: bool = False,
) -> Objective:
    """Encode the calibration set, run the unpruned model on it once, and be ready for strategies.

    Args:
        model: a loaded model of a supported family.
        processor: its processor.
        calibration: the samples.
        metric: one of `divergence.METRICS` or `divergence.ANSWER_METRICS`.
        batch_size: samples to a batch; chosen by prompt length when None.
        cache: folder of what no strategy changes: features, the unpruned model's results and
            attention maps, shared by all runs and processes; None keeps it in memory.
        cache_gb: bound on the folder, 20 when None; what was not used for longest goes first.
            Without a folder, on the attention maps in memory, 4 when None.
        progress: called with (samples done, samples in total) while the reference is computed.
        name: the model's name for strategy files; where it was loaded from when None.
        strict: stop at the first sample that the processor does not take, instead of leaving it
            out; `Objective.calibration` is what is left, and its `note` names the others.

    Raises:
        CalibrationError: more than a fifth of the samples are not taken, or, strictly, one is not.
        ModelError: no adapter serves the model, it fails its self-check, or it is pruned already.
        CacheError: the cache folder cannot be written.
    """
    refuse_if_pruned(model)
    adapter = adapter_for(model)
    require_checked(adapter, processor)
    pixels = pixel_scale(processor) if adapter.knows_grid else None
    folder = None if cache is None else cache_folder(cache, cache_gb)
    build = partial(
        build_reference, adapter, processor, pixels=pixels, cache=folder, progress=progress
    )
    try:
        reference = build(calibration)
    except CalibrationError:
        if strict:
            raise
        calibration = taken_by(processor, calibration)
        reference = build(calibration)
    prepared, answers = settled(reference.prepared), None
    readout = settled_readout(reference.readout, adapter.backbone.device)
    if metric in ANSWER_METRICS:
        answers = build_answers(prepared, reference.key, cache=folder, progress=progress)
    shelf = map_shelf(reference.key, folder, cache_gb)
    maps = AttentionMaps(adapter, processor, calibration.samples, prepared, shelf)
    return Objective(
        adapter=adapter,
        facts=_facts(prepared, identity_of(model, name), pixels, maps.offered),
        calibration=calibration,
        reference=replace(reference, readout=readout),
        source=SignalSource(prepared, maps),
        metric=metric,
        batch_size=batch_size or prepared.batch_size(),
        answers=answers,
    )


def _facts(
    prepared: PreparedSet,
    identity: ModelIdentity,
    pixels: PixelScale | None,
    offered: OfferedLayers,
) -> ModelFacts:
    """What a search space has to know of the model; the images say whether it has separators."""
    adapter = prepared.adapter
    images = (image for sample in prepared.samples for image in sample.images)
    return ModelFacts(
        identity=identity,
        pixels=pixels,
        vision_layers_available=offered.layers,
        layers_note=offered.note,
        packs_positions="packed" in adapter.family.positions,
        recycles=adapter.knows_grid,
        scores=adapter.family.scores,
        has_separators=any(bool(image.grid.separator_N.any()) for image in images),
    )
