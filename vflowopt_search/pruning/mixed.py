"""Several strategies in one prefill, each on rows of its own; for measuring, not for generating.

Shape suffixes: B = batch rows, S = unpruned sequence, K = tokens of a segment, D = features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vflowopt_search.errors import UnsupportedError
from vflowopt_search.pruning.anatomy import Anatomy
from vflowopt_search.pruning.engine import Engine
from vflowopt_search.pruning.positions import packed
from vflowopt_search.pruning.prefill import Prefill
from vflowopt_search.pruning.scoring import Scoring
from vflowopt_search.pruning.state import Segment
from vflowopt_search.strategy import Strategy


class MixedScoring:
    """The scores of several strategies, whose prompts come with signals provided to each.

    Attributes:
        parts: the scoring of each strategy, in their order.
        text_layers: stage layers that any of them scores by attention inside the decoder.
    """

    def __init__(self, parts: Sequence[Scoring]) -> None:
        self.parts = tuple(parts)
        self.text_layers = sorted({layer for part in parts for layer in part.text_layers})

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Let go of all signals when the `with` block ends; no encoder is watched in it."""
        yield
        self.forget_images()

    def begin(self, outputs: Mapping[str, Any] | None) -> None:
        """Take the signals that were provided."""
        for part in self.parts:
            part.begin(outputs)

    def forget_recorded(self) -> None:
        """Drop what a prompt that never came left."""
        for part in self.parts:
            part.forget_recorded()

    def forget_images(self) -> bool:
        """Drop what was provided; whether there was anything."""
        forgotten = [part.forget_images() for part in self.parts]
        return any(forgotten)


@dataclass(frozen=True, eq=False)
class Share:
    """What one strategy does with its rows of a batch."""

    prefill: Prefill
    rows: slice

    def stage_at(self, layer: int) -> int | None:
        """Number of the strategy's stage at a layer; None without one."""
        layers = [stage.layer for stage in self.prefill.strategy.stages]
        return layers.index(layer) if layer in layers else None


class MixedPrefill:
    """The pruning of a batch whose rows belong to several strategies."""

    def __init__(self, shares: Sequence[Share]) -> None:
        self.shares = list(shares)

    @property
    def alive_BS(self) -> Tensor:  # noqa: N802 - a shape suffix
        """Tokens still in the sequence, padding never."""
        return _joined([share.prefill.alive_BS for share in self.shares])

    def first_stage(self, embeds_BSD: Tensor) -> Tensor:
        """Stage 0 of those that have one; returns embeddings with recycled tokens written in."""
        parts = [share.prefill.first_stage(embeds_BSD[share.rows]) for share in self.shares]
        return _joined(parts)

    def later_stage(self, layer: int) -> None:
        """Choose at `layer` in the rows of those that have a stage there."""
        for share in self.shares:
            number = share.stage_at(layer)
            if number is not None:
                share.prefill.later_stage(number)

    def see_text(self, seen_BK: Tensor, segment: Segment) -> None:
        """Score visual tokens of those that score by the last prompt token's attention."""
        for share in self.shares:
            if share.prefill.scoring.text_layers:
                rows = share.rows
                mine = replace(
                    segment, index_BK=segment.index_BK[rows], valid_BK=segment.valid_BK[rows]
                )
                share.prefill.see_text(seen_BK[rows], mine)

    def with_recycled(self, embeds_BSD: Tensor) -> Tensor:
        """Values per token with each merged token's mean at its anchor."""
        parts = [share.prefill.with_recycled(embeds_BSD[share.rows]) for share in self.shares]
        return _joined(parts)


class MixedEngine(Engine):
    """Several strategies on one model, in prefills without a cache.

    Before each one, `assign` says whose the rows are, and each of those strategies' scorings is
    provided with the signals of its rows.
    """

    scoring: MixedScoring

    def __init__(self, anatomy: Anatomy, strategies: Sequence[Strategy]) -> None:
        self.strategies = tuple(strategies)
        layers = {stage.layer for each in strategies for stage in each.stages} - {0}
        scoring = MixedScoring([Scoring(anatomy, strategy) for strategy in strategies])
        # a stage has another number in each strategy, so that stages go by their layer here
        super().__init__(anatomy, scoring, {layer: layer for layer in layers})
        self._rows: Mapping[int, slice] = {}

    def assign(self, rows: Sequence[int]) -> None:
        """Say by its number which strategy each row of the next batch belongs to.

        The rows of one strategy stand together.
        """
        order = list(dict.fromkeys(rows))
        starts = {number: rows.index(number) for number in order}
        self._rows = {n: slice(starts[n], starts[n] + rows.count(n)) for n in order}

    def before_backbone(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Start a batch of prompts; refuse a cache, whose rows nobody could go on with."""
        _refuse_cache(kwargs)
        changed = super().before_backbone(module, args, kwargs)
        _refuse_cache(kwargs if changed is None else changed[1])
        return changed

    def prefill(self, kinds: Mapping[str, Tensor], valid_BS: Tensor) -> MixedPrefill:
        """Begin to prune a batch of prompts, each by its strategy."""
        self._refuse_other_rows(len(valid_BS))
        return MixedPrefill(
            [
                Share(
                    Prefill(
                        self.strategies[number],
                        self.scoring.parts[number],
                        {kind: mask_BS[rows] for kind, mask_BS in kinds.items()},
                        valid_BS[rows],
                    ),
                    rows,
                )
                for number, rows in self._rows.items()
            ]
        )

    def positions(self, ids_BK: Tensor, first: Segment) -> tuple[Tensor, Tensor | None]:
        """Consecutive positions in the rows of the strategies that ask for them."""
        packs = [strategy.positions == "packed" for strategy in self.strategies]
        packed_rows = [rows for number, rows in self._rows.items() if packs[number]]
        if not packed_rows:
            return ids_BK, None
        packed_BK, _ = packed(ids_BK, first)
        mixed_BK = ids_BK.clone()
        for rows in packed_rows:
            mixed_BK[rows] = packed_BK[rows]
        return mixed_BK, None

    def _refuse_other_rows(self, num_rows: int) -> None:
        assigned = sum(rows.stop - rows.start for rows in self._rows.values())
        if assigned != num_rows:
            raise UnsupportedError(
                f"the batch has {num_rows} rows but {assigned} were assigned to strategies; "
                "assign every row before the forward"
            )


def _refuse_cache(kwargs: Mapping[str, Any]) -> None:
    if kwargs.get("past_key_values") is not None:
        raise UnsupportedError(
            "several strategies share this batch, which is for measuring only, and nothing can be "
            "generated from it; pass use_cache=False, or apply one strategy"
        )


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
