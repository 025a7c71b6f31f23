"""Short greedy answers with and without pruning, and how far apart two of them are.

Shape suffixes: B = rows, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vflowopt_search.adapters.base import Adapter
from vflowopt_search.pruning.record import Applied, LastPrefill
from vflowopt_search.pruning.single import PruningEngine
from vflowopt_search.selfcheck.inputs import special_tokens
from vflowopt_search.strategy import Strategy

NEW_TOKENS = 3
NO_LOGIT = 6e4


@dataclass(frozen=True, eq=False)
class Answer:
    """Greedy ids (B, new), logits of each step (B, new, V), tokens held by each cache layer."""

    ids: Tensor
    logits: Tensor
    held: list[int]


def pruned_answer(
    adapter: Adapter, inputs: Mapping[str, Any], strategy: Strategy | None
) -> tuple[Answer, LastPrefill | None]:
    """The answer under a strategy, or of the unpruned model, and what was pruned."""
    if strategy is None:
        return answer(adapter, inputs), None
    engine = PruningEngine(adapter, strategy, Applied())
    with engine.attached():
        return answer(adapter, inputs), engine.applied.last


def answer(adapter: Adapter, inputs: Mapping[str, Any]) -> Answer:
    """A greedy answer of three tokens, none of them special."""
    model: Any = adapter.model
    with torch.no_grad():
        out = model.generate(
            **inputs,
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            return_dict_in_generate=True,
            output_logits=True,
            suppress_tokens=sorted(special_tokens(adapter)),
        )
    ids = out.sequences[:, inputs["input_ids"].shape[1] :]
    held = [int(layer.get_seq_length()) for layer in out.past_key_values.layers]
    return Answer(ids, torch.stack(out.logits, dim=1), held)


def gap_between(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest value expected."""
    found, expected = found.float(), expected.float()
    # some models forbid tokens by the least number there is, beside which nothing would differ
    never = (expected < -NO_LOGIT) & (found < -NO_LOGIT)
    found, expected = found.masked_fill(never, 0), expected.masked_fill(never, 0)
    return largest(found - expected) / max(largest(expected), 1e-30)


def largest(values: Tensor) -> float:
    """The largest size of any value; nan where there is one."""
    return float(values.abs().max())


def not_finite(parts: Sequence[Tensor]) -> float:
    """How many values are nan or infinite."""
    return float(sum(int((~part.isfinite()).sum()) for part in parts))
