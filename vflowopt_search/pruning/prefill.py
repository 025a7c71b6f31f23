"""The pruning of one prompt, stage by stage, in coordinates of the unpruned sequence.

Shape suffixes: B = batch rows, S = unpruned sequence, N = visual tokens of one row,
K = tokens of a segment, Q = queries, H = heads, D = features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from vflowopt_search.budget import kept_counts
from vflowopt_search.importance.signals import TokenGrid
from vflowopt_search.ops.dispatch import merge_tokens
from vflowopt_search.pruning.plan import (
    Merge,
    best_of_alive,
    grid_cells,
    join_grids,
    ranking,
    recycle,
)
from vflowopt_search.pruning.record import LastPrefill
from vflowopt_search.pruning.scoring import TEXT, Scoring
from vflowopt_search.pruning.state import Segment
from vflowopt_search.strategy import Strategy


class Prefill:
    """What is alive of one batch of prompts, and why.

    Attributes:
        alive_BS: tokens still in the sequence, padding never.
        alive: per row, the indices 0..N-1 of the visual tokens alive, ascending.
    """

    def __init__(
        self,
        strategy: Strategy,
        scoring: Scoring,
        kinds: Mapping[str, Tensor],
        valid_BS: Tensor,
    ) -> None:
        """Score the visual tokens of a prompt.

        Args:
            strategy: what to do.
            scoring: knows the images that were encoded.
            kinds: "image" and perhaps "video" to where their tokens are, boolean (B, S).
            valid_BS: False at padding.
        """
        self.strategy, self.scoring = strategy, scoring
        visual_BS = torch.stack(list(kinds.values())).any(0)
        self.alive_BS = valid_BS.clone()
        self.num_text = (valid_BS & ~visual_BS).sum(1)
        self.positions = [row.nonzero().squeeze(1) for row in visual_BS]
        sizes = [len(row) for row in self.positions]
        self.counts = [kept_counts(strategy.stages, size) for size in sizes]
        self.alive = [torch.arange(size, device=visual_BS.device) for size in sizes]
        self.scores, self.grids = in_prompt_order(
            kinds, self.positions, *scoring.vision_scores({k: _counts(m) for k, m in kinds.items()})
        )
        self.merges: list[Merge | None] = [None] * len(sizes)
        self._kept: dict[int, list[Tensor]] = {}
        self._importance: list[Tensor] = []

    def first_stage(self, embeds_BSD: Tensor) -> Tensor:
        """Stage 0, if there is one: choose, recycle (algorithms.md 1.1 and 1.2).

        Returns:
            Embeddings with recycled tokens written in, (B, S, D).
        """
        if self.strategy.stages[0].layer > 0:
            return embeds_BSD
        self._importance = self._scores_at(0)
        for row, grid in enumerate(self.grids):
            if grid is None:
                continue
            order_N = self._order(row, grid, 0)
            count = self.counts[row][0]
            if self.strategy.recycling is None:
                self._keep(row, best_of_alive(order_N, self.alive[row], count))
                continue
            cell_N = grid_cells(grid, self.strategy.recycling.cell)
            kept, self.merges[row] = recycle(self._importance[row], order_N, cell_N, count)
            self._keep(row, kept)
        self._file(0)
        return self.with_recycled(embeds_BSD)

    def later_stage(self, number: int) -> None:
        """Choose at stage `number`, whose layer is 1 or more."""
        if number == 0:  # the next stage by attention inside the decoder overwrites its scores
            self._importance = self._scores_at(0)
        for row, grid in enumerate(self.grids):
            if grid is not None:
                order_N = self._order(row, grid, number)
                self._keep(row, best_of_alive(order_N, self.alive[row], self.counts[row][number]))
        self._file(self.strategy.stages[number].layer)

    def see_text(self, seen_BK: Tensor, segment: Segment) -> None:
        """Score visual tokens by the last prompt token's attention to a segment's (FastV)."""
        scores = []
        for row, alive in enumerate(self.alive):
            score_N = seen_BK.new_full((len(self.positions[row]),), -torch.inf)
            pad = int((~segment.valid_BK[row]).sum())
            place = torch.searchsorted(segment.index_BK[row, pad:], self.positions[row][alive])
            score_N[alive] = seen_BK[row, pad + place]
            scores.append(score_N)
        self.scores[TEXT] = scores

    def record(self, num_layers: int) -> LastPrefill:
        """What happened so far, in plain values."""
        return LastPrefill(
            visual_tokens=[len(row) for row in self.positions],
            text_tokens=self.num_text.tolist(),
            tokens_per_layer=[self._per_layer(row, num_layers) for row in range(len(self.alive))],
            kept=dict(self._kept),
            recycled=[self._recycled(row) for row in range(len(self.alive))],
            importance=list(self._importance),
        )

    def reader(self, num_layers: int) -> partial[LastPrefill]:
        """A function that makes the record when it is wanted."""
        return partial(self.record, num_layers)

    def _scores_at(self, number: int) -> list[Tensor]:
        """Per row, what the stage `number` chooses by."""
        return self.scores[self.scoring.name_of(self.strategy.stages[number])]

    def _order(self, row: int, grid: TokenGrid, number: int) -> Tensor:
        score_N = self._scores_at(number)[row]
        return ranking(score_N, grid.separator_N, self.strategy.separators)

    def _keep(self, row: int, kept: Tensor) -> None:
        self.alive[row] = kept
        position_N = self.positions[row]
        self.alive_BS[row, position_N] = False
        self.alive_BS[row, position_N[kept]] = True

    def _file(self, layer: int) -> None:
        self._kept[layer] = [
            position[alive] for position, alive in zip(self.positions, self.alive, strict=True)
        ]

    def with_recycled(self, embeds_BSD: Tensor) -> Tensor:
        """Values per token, (B, S, D), with each merged token's mean at its anchor.

        All rows are merged in one call.
        """
        features, weights, groups, rows, anchors = [], [], [], [], []
        num_groups = 0
        for row, merge in enumerate(self.merges):
            if merge is None:
                continue
            features.append(embeds_BSD[row, self.positions[row]])
            weights.append(merge.weight_N)
            groups.append(torch.where(merge.group_N >= 0, merge.group_N + num_groups, -1))
            rows.append(torch.full_like(merge.anchor_G, row))
            anchors.append(self.positions[row][merge.anchor_G])
            num_groups += len(merge.anchor_G)
        if num_groups == 0:
            return embeds_BSD
        merged_GD = merge_tokens(
            torch.cat(features), torch.cat(weights), torch.cat(groups), num_groups
        )
        return embeds_BSD.index_put((torch.cat(rows), torch.cat(anchors)), merged_GD)

    def _per_layer(self, row: int, num_layers: int) -> list[int]:
        alive = [len(self.positions[row])] * num_layers
        for layer, kept in sorted(self._kept.items()):
            alive[layer:] = [len(kept[row])] * (num_layers - layer)
        return alive

    def _recycled(self, row: int) -> dict[int, list[int]]:
        merge, position_N = self.merges[row], self.positions[row]
        if merge is None:
            return {}
        return {
            int(position_N[anchor]): position_N[merge.group_N == group].tolist()
            for group, anchor in enumerate(merge.anchor_G.tolist())
        }


def _counts(mask_BS: Tensor) -> list[int]:
    counts: list[int] = mask_BS.sum(1).tolist()
    return counts


def in_prompt_order(
    kinds: Mapping[str, Tensor],
    positions: Sequence[Tensor],
    scores: Mapping[str, list[Tensor]],
    grids: Sequence[Sequence[TokenGrid]],
) -> tuple[dict[str, list[Tensor]], list[TokenGrid | None]]:
    """Scores and grids that list images before videos, in the order of the prompt.

    Args:
        kinds: kind to where its tokens are, boolean (B, S), in the order of the lists.
        positions: of the visual tokens of each row in the sequence, ascending.
        scores: name to one vector (N,) per row.
        grids: the grids of each row's images.

    Returns:
        The scores, and one grid per row; None where a row has no visual tokens.
    """
    joined = [join_grids(row) if row else None for row in grids]
    if sum(bool(mask_BS.any()) for mask_BS in kinds.values()) < 2:
        return dict(scores), joined
    place = [
        torch.cat([mask_BS[row][position].nonzero().squeeze(1) for mask_BS in kinds.values()])
        for row, position in enumerate(positions)
    ]
    turned = {
        name: [one[place[row].argsort()] if len(one) else one for row, one in enumerate(rows)]
        for name, rows in scores.items()
    }
    return turned, [
        None if grid is None else _reordered(grid, place[row].argsort())
        for row, grid in enumerate(joined)
    ]


def _reordered(grid: TokenGrid, order_N: Tensor) -> TokenGrid:
    return TokenGrid(
        view_N=grid.view_N[order_N],
        row_N=grid.row_N[order_N],
        col_N=grid.col_N[order_N],
        separator_N=grid.separator_N[order_N],
    )
