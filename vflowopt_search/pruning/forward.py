"""One forward over the decoder layers: what each layer is given instead of its arguments.

Shape suffixes: B = batch rows, S = unpruned sequence, K = tokens of a segment, V = visual tokens
of the batch, D = features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import is_
from typing import Any, Protocol

from torch import Tensor

from vflowopt_search.ops.dispatch import select_tokens
from vflowopt_search.ops.select import Tokens
from vflowopt_search.pruning.masks import LayerMasks
from vflowopt_search.pruning.positions import positions_at
from vflowopt_search.pruning.state import PrunedState, Segment, segment_of

RUN = "_vflowopt_run"


class StagedPrefill(Protocol):
    """The pruning of a batch of prompts, stage by stage; see `Prefill`."""

    @property
    def alive_BS(self) -> Tensor:  # noqa: N802 - a shape suffix
        """Tokens still in the sequence, padding never."""

    def first_stage(self, embeds_BSD: Tensor) -> Tensor:
        """Stage 0, if there is one; returns embeddings with recycled tokens written in."""

    def later_stage(self, number: int) -> None:
        """Choose at the stage that the engine's `later_layers` names so."""

    def see_text(self, seen_BK: Tensor, segment: Segment) -> None:
        """Score visual tokens by the last prompt token's attention to a segment's."""

    def with_recycled(self, embeds_BSD: Tensor) -> Tensor:
        """Values per token with each merged token's mean at its anchor."""


@dataclass(eq=False)
class Forward:
    """The layers' view of one forward.

    Attributes:
        state: segments of the prompt.
        masks: makes the layers' masks.
        later_layers: layer to number of the stage that starts there.
        prefill: the pruning of this prompt, None in a decode step.
        deepstack: features to be added to the output of layers 0, 1, ... in the unpruned
            sequence (B, S, D), in models that do so and leave it to us.
    """

    state: PrunedState
    masks: LayerMasks
    later_layers: Mapping[int, int]
    prefill: StagedPrefill | None = None
    deepstack: Sequence[Tensor] = ()
    _taken: list[tuple[int, tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)

    def touches_layers(self) -> bool:
        """Whether any layer is to be given something of its own."""
        stages = self.prefill is not None and bool(self.later_layers)
        return stages or len(self.state.segments) > 1 or bool(self.deepstack)

    def before_layer(
        self, layer: int, hidden_BKD: Tensor, kwargs: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Any]]:
        """Prune if a stage starts here; give the layer its own mask and positions."""
        if 0 < layer <= len(self.deepstack):
            segment = self._segment_into(layer)
            added_BKD = rows_at(self.deepstack[layer - 1], segment.index_BK)
            hidden_BKD = hidden_BKD + added_BKD.to(hidden_BKD) * segment.valid_BK[..., None]
        if self.prefill is not None and layer in self.later_layers:
            hidden_BKD = self._later_stage(self.prefill, layer, hidden_BKD)
        segment, first = self.state.segment_at(layer), self.state.segments[0]
        if segment is first:
            return hidden_BKD, kwargs
        kwargs = kwargs | {"attention_mask": self.masks.mask(segment, layer, hidden_BKD)}
        if self.prefill is not None:
            kwargs |= self._positions(kwargs, first, segment)
        return hidden_BKD, kwargs

    def _positions(
        self, kwargs: dict[str, Any], first: Segment, segment: Segment
    ) -> dict[str, Any]:
        """Positions of a segment's tokens; the layers of a segment are mostly given the same."""
        given = tuple(kwargs.get(name) for name in ("position_ids", "position_embeddings"))
        for start, known, taken in self._taken:
            if start == segment.start and all(map(is_, known, given)):
                return taken
        taken = positions_at(kwargs, first.places(segment))
        self._taken.append((segment.start, given, taken))
        return taken

    def _segment_into(self, layer: int) -> Segment:
        """The segment whose tokens come out of the layer before."""
        return self.state.segment_at(layer - 1)

    def _later_stage(self, prefill: StagedPrefill, layer: int, hidden_BKD: Tensor) -> Tensor:
        """Drop what the stage at `layer` drops; opens a segment if any went.

        Gradient checkpointing runs a layer again in the backward: then its segment is there.
        """
        if layer not in self.state.staged:
            self.state.staged.add(layer)
            before = self.state.segments[-1]
            prefill.later_stage(self.later_layers[layer])
            after = segment_of(prefill.alive_BS, layer)
            if bool((after.valid_BK.sum(1) != before.valid_BK.sum(1)).any()):
                self.state.segments.append(after)
        after = self.state.segment_at(layer)
        if after.start != layer:
            return hidden_BKD
        return rows_at(hidden_BKD, self._segment_into(layer).places(after))


def rows_at(values_BSD: Tensor, index_BK: Tensor) -> Tensor:
    """Take rows of (B, S, D) by per-row indices: (B, K, D)."""
    return select_tokens(Tokens(values_BSD), index_BK.to(values_BSD.device)).hidden_BND


def tokens_at(values_BSD: Tensor, position_ids: Tensor, index_BK: Tensor) -> tuple[Tensor, Tensor]:
    """Take rows of (B, S, D) and position ids, (B or 1, S) or with M-RoPE (A, B or 1, S)."""
    axes = position_ids.dim() - 2
    position_ABS = position_ids if axes else position_ids[None]
    tokens = Tokens(values_BSD, position_ABS.to(values_BSD.device))
    kept = select_tokens(tokens, index_BK.to(values_BSD.device))
    assert kept.position_ABN is not None
    return kept.hidden_BND, kept.position_ABN if axes else kept.position_ABN[0]


def dense_deepstack(
    visual_BS: Tensor, embeds: Sequence[Tensor], like_BSD: Tensor, prefill: StagedPrefill
) -> list[Tensor]:
    """Deepstack features (V, D) per layer, at their places in the sequence; recycled ones merged.

    A recycled token stands for several: it gets the mean of their deepstack features by the
    weights of its own mean.
    """
    dense = []
    for embeds_VD in embeds:
        dense_BSD = like_BSD.new_zeros(like_BSD.shape)
        dense_BSD[visual_BS.to(like_BSD.device)] = embeds_VD.to(like_BSD)
        dense.append(prefill.with_recycled(dense_BSD))
    return dense
