"""What both halves of `engine_cost` need: strategies, prompts, a second module, medians."""

from __future__ import annotations

import copy
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor

from tests.bench.subjects import Subject
from vflowopt_search.adapters.registry import adapter_for
from vflowopt_search.calibration.encoding import encode
from vflowopt_search.pruning.record import LastPrefill
from vflowopt_search.strategy import Importance, Stage, Strategy

STAGES: dict[str, tuple[tuple[float, float], ...]] = {
    "one stage": ((0.0, 0.10),),
    "three stages": ((0.0, 0.16), (1 / 3, 0.6), (2 / 3, 0.3)),
}
"""Depth of each stage as a share of the decoder's, and its keep ratio: a mean of about 0.10."""

FIRST_WORD = 8
"""Token id; text of prompts without images is made of this one."""


def strategy_on(subject: Subject, stages: str) -> Strategy:
    """A strategy of these stages, scored by received attention, without recycling."""
    adapter = adapter_for(subject.model)
    depth = len(adapter.decoder_layers)
    return Strategy(
        name=stages,
        importance=Importance(vision_layer=adapter.vision_layers[-1], context_threshold=1.1),
        stages=tuple(
            Stage(layer=round(share * depth), keep_ratio=ratio) for share, ratio in STAGES[stages]
        ),
    )


def twin(model: Any) -> Any:
    """The same model as a module of its own: a copy that shares all weights."""
    shared = {id(one): one for one in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, memo=dict(shared))


def text_prompt(last: LastPrefill) -> dict[str, Tensor]:
    """A left-padded prompt without images whose rows hold as many tokens as pruned rows do.

    Where layers hold different numbers, their mean.
    """
    lengths = [
        text + round(sum(visual) / len(visual))
        for text, visual in zip(last.text_tokens, last.tokens_per_layer, strict=True)
    ]
    place_S = torch.arange(max(lengths))
    mask_BS = (place_S >= max(lengths) - torch.tensor(lengths)[:, None]).long()
    return {"input_ids": torch.full_like(mask_BS, FIRST_WORD), "attention_mask": mask_BS}


def batch_of(subject: Subject, rows: int, *, ragged: bool) -> dict[str, Any]:
    """The processor's output for some samples; rows that are not ragged are all the same one."""
    samples = subject.samples.samples[:rows] if ragged else subject.samples.samples[:1] * rows
    return dict(encode(subject.processor, list(samples)))


def spread(values: list[float]) -> str:
    """Median and quartiles."""
    low, _, high = quantiles(values, n=4)
    return f"{median(values):.3f} | {low:.3f} .. {high:.3f}"
