"""The search as VFlowOpt published it, in our own words (VFlowOpt sections 1.1 to 1.5).

One sample at a time; in every trial the unpruned model and its vision encoder run again; recycling
walks over grid cells in Python; the last ratio follows from the budget; a Gaussian process with
27 random starts proposes. It stands beside our own search in `tests.bench.search_cost`, and
serves LLaVA-OneVision only, as the original does.

Shape suffixes: T = tiles, H = heads, P = patches of a tile, N = visual tokens, S = sequence,
K = tokens left, D = features, X = pixels of a patch.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature, DynamicCache

from tests.bench.phases import Phases

STARTS = 27
THRESHOLD, ENTROPY_WEIGHT, CELL, RATIO = (0.0, 50.0), (-1.0, 1.0), (3.0, 24.0), (0.05, 1.0)
GREY = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Proposal:
    """One point of the published space, and the last ratio that the budget leaves."""

    threshold: float
    entropy_weight: float
    cell: float
    ratios: tuple[float, float, float]


@dataclass
class PublishedLoop:
    """One study on one model.

    Attributes:
        model: a LLaVA-OneVision model. Its vision tower attends eagerly only where a map is read:
            the unpruned model runs as fast as it can.
        inputs: what the processor made of each sample; preprocessing is not counted.
        retain: mean share of visual tokens alive over the decoder layers.
        mean, std: how the processor normalised pixels.
        phases: the seconds spent so far, by phase.
    """

    model: Any
    inputs: Sequence[BatchFeature]
    retain: float
    mean: Sequence[float]
    std: Sequence[float]
    phases: Phases = field(default_factory=Phases)

    def __post_init__(self) -> None:
        self.base = self.model.model
        depth = len(self.base.language_model.layers)
        self.layers = (round(9 / 28 * depth), round(18 / 28 * depth))
        self.vision_layer = len(self.base.vision_tower.encoder.layers) - 2

    def search(self, trials: int, seed: int) -> Iterator[tuple[float, float, int]]:
        """Divergence of each trial, the seconds until it was known, the samples measured for it.

        A proposal that leaves nothing for the last ratio is worth 1 and costs no sample.
        """
        from skopt import Optimizer

        optimizer = Optimizer(
            self.bounds(), "GP", n_initial_points=STARTS, acq_func="gp_hedge", random_state=seed
        )
        start = time.process_time()
        for _ in range(trials):
            with self.phases.during("sampler"):
                point = optimizer.ask()
            proposal = self.proposal(point)
            value = 1.0 if proposal is None else self.divergence(proposal)
            with self.phases.during("sampler"):
                optimizer.tell(point, value)
            spent = 0 if proposal is None else len(self.inputs)
            yield value, time.process_time() - start, spent

    def bounds(self) -> list[tuple[float, float]]:
        """Ranges of t, alpha, a, R1 and R2; R1 is kept to what the budget allows at all."""
        depth = len(self.base.language_model.layers)
        most = min(1.0, self.retain * depth / self.layers[0])
        return [THRESHOLD, ENTROPY_WEIGHT, CELL, (min(RATIO[0], most / 2), most), RATIO]

    def proposal(self, point: Sequence[float]) -> Proposal | None:
        """Derive the last ratio from the budget, clipped at 1; None where none is left for it."""
        threshold, weight, cell, first, second = point
        depth = len(self.base.language_model.layers)
        one, two = self.layers
        left = self.retain * depth - one * first - (two - one) * first * second
        third = left / ((depth - two) * first * second)
        if third <= 0:
            return None
        return Proposal(threshold, weight, cell, (first, second, min(1.0, third)))

    @torch.no_grad()
    def divergence(self, proposal: Proposal) -> float:
        """Mean over the samples of 1 - cosine at the last prompt token."""
        total = 0.0
        for inputs in self.inputs:
            with self.phases.during("unpruned model"):
                whole = self._whole(inputs)
            pruned = self._pruned(inputs, proposal)
            similarity = torch.cosine_similarity(whole.float(), pruned.float(), dim=0)
            # as published: recycling by weights that cancel out gives nan, which counts as 0
            total += 1 - float(similarity.nan_to_num(0.0))
        return total / len(self.inputs)

    def _whole(self, inputs: BatchFeature) -> Tensor:
        out = self.model.generate(
            **inputs,
            max_new_tokens=1,
            do_sample=False,
            output_hidden_states=True,
            return_dict_in_generate=True,
        )
        hidden: Tensor = out.hidden_states[0][-1][0, -1]
        return hidden

    def _pruned(self, inputs: BatchFeature, proposal: Proposal) -> Tensor:
        with self._eager_tower(), self.phases.during("vision encoder"):
            encoded = self.base.get_image_features(
                pixel_values=inputs["pixel_values"],
                image_sizes=inputs["image_sizes"],
                output_attentions=True,
            )
            features_ND = encoded.pooler_output[0]
            map_TPP = encoded.attentions[self.vision_layer].float().mean(1)
        with self.phases.during("importance"):
            score_N, cells = self._importance(inputs, map_TPP, proposal, len(features_ND))
        with self.phases.during("recycling"):
            kept_N, features_ND = recycle(features_ND, score_N, cells, proposal)
        with self.phases.during("decoder"):
            return self._decode(inputs, features_ND, score_N, kept_N, proposal)

    def _importance(
        self, inputs: BatchFeature, map_TPP: Tensor, proposal: Proposal, num_tokens: int
    ) -> tuple[Tensor, list[tuple[int, ...] | None]]:
        """Score of each token (section 1.1), separators 1, and its place (view, row, column)."""
        rows = []
        for map_PP, gray_PX in zip(map_TPP, self._gray(inputs), strict=True):
            received_P = map_PP.mean(0)
            chosen_P = received_P > proposal.threshold * received_P.mean()
            if not bool(chosen_P.any()):
                chosen_P = received_P == received_P.max()
            entropy_P = torch.stack([entropy(gray_X) for gray_X in gray_PX])
            relevance_P = map_PP[chosen_P].mean(0)
            rows.append(relevance_P + proposal.entropy_weight * entropy_P.softmax(0))
        score_N = self._pack(inputs, torch.stack(rows), 1.0)
        side = math.isqrt(map_TPP.shape[1])
        ends = self._pack(inputs, torch.zeros_like(torch.stack(rows)), 1.0) == 1.0
        return score_N, places(ends[:num_tokens].tolist(), side)

    def _pack(self, inputs: BatchFeature, map_TP: Tensor, newline: float) -> Tensor:
        packed, _ = self.base.pack_image_features(
            [map_TP[..., None]], inputs["image_sizes"], image_newline=map_TP.new_full((1,), newline)
        )
        flat_N: Tensor = packed[0][:, 0]
        return flat_N

    def _gray(self, inputs: BatchFeature) -> Tensor:
        """Grey levels 0..255 of the pixels of every patch, (T, P, X)."""
        pixels = inputs["pixel_values"][0].float()
        channel = [torch.tensor(v).view(3, 1, 1) for v in (self.std, self.mean, GREY)]
        gray = ((pixels * channel[0] + channel[1]) * 255 * channel[2]).sum(1).round()
        size = self.model.config.vision_config.patch_size
        patches = gray.clamp(0, 255).unfold(1, size, size).unfold(2, size, size)
        gray_TPX: Tensor = patches.flatten(3).flatten(1, 2)
        return gray_TPX

    def _decode(
        self,
        inputs: BatchFeature,
        features_KD: Tensor,
        score_N: Tensor,
        kept_K: Tensor,
        proposal: Proposal,
    ) -> Tensor:
        """One prefill of the shortened prompt, shortened again before two layers."""
        ids_S = inputs["input_ids"][0]
        visual_S = ids_S == self.model.config.image_token_id
        first = int(visual_S.nonzero()[0])
        text_SD = self.base.get_input_embeddings()(ids_S[~visual_S])
        hidden_SD = torch.cat([text_SD[:first], features_KD, text_SD[first:]])[None]
        place_K = torch.arange(first, first + len(kept_K))
        position_S = torch.arange(hidden_SD.shape[1])
        text = self.base.language_model
        cos, sin = text.rotary_emb(hidden_SD, position_S[None])
        cache = DynamicCache(config=text.config)
        for number, layer in enumerate(text.layers):
            if number in self.layers:
                ratio = proposal.ratios[1 + self.layers.index(number)]
                kept_K, place_K, left_S = drop(score_N, kept_K, place_K, ratio, position_S)
                hidden_SD, cos, sin = hidden_SD[:, left_S], cos[:, left_S], sin[:, left_S]
                position_S = position_S[: len(left_S)]
            hidden_SD = layer(
                hidden_SD,
                attention_mask=None,
                position_embeddings=(cos, sin),
                past_key_values=cache,
                use_cache=True,
            )
        last_D: Tensor = text.norm(hidden_SD)[0, -1]
        self.model.lm_head(last_D)  # one token is generated
        return last_D

    @contextmanager
    def _eager_tower(self) -> Iterator[None]:
        """Let the vision tower attend eagerly, so that it gives its maps."""
        tower = self.base.vision_tower
        usual = tower.config._attn_implementation
        tower.set_attn_implementation("eager")
        try:
            yield
        finally:
            tower.set_attn_implementation(usual)


def entropy(gray_X: Tensor) -> Tensor:
    """Entropy of a patch's 256-bin histogram, in bits."""
    share = torch.histc(gray_X, 256, 0, 255) / len(gray_X)
    share = share[share > 0]
    return -(share * share.log2()).sum()


def places(ends: Sequence[bool], side: int) -> list[tuple[int, ...] | None]:
    """View, row and column of every token; None for the separators behind rows."""
    found: list[tuple[int, ...] | None] = [(0, i // side, i % side) for i in range(side * side)]
    row = column = 0
    for end in ends[side * side :]:
        found.append(None if end else (1, row, column))
        row, column = (row + 1, 0) if end else (row, column + 1)
    return found


def recycle(
    features_ND: Tensor,
    score_N: Tensor,
    cells: Sequence[tuple[int, ...] | None],
    proposal: Proposal,
) -> tuple[Tensor, Tensor]:
    """Section 1.2: the least important tokens become one per grid cell, cell after cell."""
    count = len(score_N)
    removed = round(count * (1 - proposal.ratios[0]))
    going = min(count, removed + math.floor(count / proposal.cell**2)) if removed else 0
    order = score_N.argsort(stable=True).tolist()
    members: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for token in order[:going]:
        place = cells[token]
        if place is not None:
            view, row, column = place
            key = (view, math.floor(row / proposal.cell), math.floor(column / proposal.cell))
            members[key].append(token)
    kept, features_ND = set(order[going:]), features_ND.clone()
    for tokens in members.values():
        weight = score_N[tokens]
        mean_D = (weight[:, None] * features_ND[tokens]).sum(0) / weight.sum()
        anchor = tokens[int(weight.argmax())]
        features_ND[anchor] = mean_D.to(features_ND.dtype)
        kept.add(anchor)
    kept_K = torch.tensor(sorted(kept))
    return kept_K, features_ND[kept_K]


def drop(
    score_N: Tensor, kept_K: Tensor, place_K: Tensor, ratio: float, position_S: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Section 1.3: leave the share `ratio` of the visual tokens.

    Returns the tokens left, their new places in the sequence, and the rows of it that are left.
    """
    number = max(1, len(kept_K) - round(len(kept_K) * (1 - ratio)))
    best = score_N[kept_K].topk(number).indices.sort().values
    alive_S = torch.ones(len(position_S), dtype=torch.bool)
    alive_S[place_K] = False
    alive_S[place_K[best]] = True
    place = int(place_K[0])
    return kept_K[best], torch.arange(place, place + number), alive_S.nonzero()[:, 0]
