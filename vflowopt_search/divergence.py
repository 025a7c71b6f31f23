"""How far a pruned model has moved from the unpruned one, per sample (algorithms.md 1.5).

Shape suffixes: B = samples, L = decoder layers, D = hidden width, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from vflowopt_search.errors import DivergenceError, StudyError


@dataclass(frozen=True, eq=False)
class Readout:
    """What a prefill left at the last prompt token.

    `hidden_BLD` holds the output of each decoder layer, the last one after the final norm.
    """

    hidden_BLD: Tensor
    logits_BV: Tensor


@dataclass(frozen=True)
class Metric:
    """What a metric reads of a readout, and how it compares two of them."""

    read: Callable[[Readout], Tensor]
    compare: Callable[[Tensor, Tensor], Tensor]


def divergence(metric: str, reference: Readout, pruned: Readout) -> Tensor:
    """Divergence of each sample by one of `METRICS`, fp64 (B,); exactly 0 for identical readouts.

    Raises DivergenceError if a value that the metric reads, or its answer, is not finite, and
    StudyError if no metric has this name.
    """
    if metric not in METRICS:
        raise StudyError(f"no metric is called {metric!r}; use one of {', '.join(sorted(METRICS))}")
    chosen = METRICS[metric]
    # Contiguous, so that identical values are summed in the same order.
    unpruned = chosen.read(reference).double().contiguous()
    changed = chosen.read(pruned).double().contiguous()
    _check_finite(unpruned, f"{metric}: what the unpruned model gave")
    _check_finite(changed, f"{metric}: what the pruned model gave")
    result_B = chosen.compare(unpruned, changed)
    _check_finite(result_B, f"{metric}: the divergence")
    return result_B


def _check_finite(value: Tensor, what: str) -> None:
    """Raise DivergenceError if a sample (first dimension) holds a value that is not finite."""
    bad = (~value.isfinite()).flatten(1).any(1) if value.ndim > 1 else ~value.isfinite()
    rows = bad.nonzero().flatten().tolist()
    if rows:
        raise DivergenceError(
            f"{what} is not finite for {len(rows)} of {len(value)} samples (rows {rows} of the "
            f"batch); run the model in bfloat16 or float32, or leave these samples out"
        )


def _cosine_gap(one: Tensor, other: Tensor) -> Tensor:
    """1 - cos over the last dimension, in [0, 2]; 0 between zero vectors, 1 if only one is zero."""
    one_length = one.norm(dim=-1, keepdim=True)
    other_length = other.norm(dim=-1, keepdim=True)
    # Half the squared distance of the unit vectors is 1 - cos, without its cancellation near 0.
    distance = one / _nonzero(one_length) - other / _nonzero(other_length)
    gap = distance.square().sum(-1).div(2).clamp(max=2)
    lone_zero = (one_length == 0) ^ (other_length == 0)
    return torch.where(lone_zero.squeeze(-1), 1.0, gap)


def _nonzero(length: Tensor) -> Tensor:
    return torch.where(length == 0, 1.0, length)


def _flow(reference_BLD: Tensor, pruned_BLD: Tensor) -> Tensor:
    """Mean over the decoder layers of 1 - cos, in [0, 2]."""
    return _cosine_gap(reference_BLD, pruned_BLD).mean(-1)


def _kl(reference_BV: Tensor, pruned_BV: Tensor) -> Tensor:
    """KL(softmax(reference) || softmax(pruned)) in nats, at least 0."""
    log_reference_BV = reference_BV.log_softmax(-1)
    gap_BV = log_reference_BV - pruned_BV.log_softmax(-1)
    return (log_reference_BV.exp() * gap_BV).sum(-1).clamp(min=0)


def _total_variation(reference_BV: Tensor, pruned_BV: Tensor) -> Tensor:
    """Half the L1 distance of the two next-token distributions, in [0, 1]."""
    gap_BV = reference_BV.softmax(-1) - pruned_BV.softmax(-1)
    return gap_BV.abs().sum(-1).div(2).clamp(max=1)


def _last_hidden(readout: Readout) -> Tensor:
    return readout.hidden_BLD[:, -1]


def _all_hidden(readout: Readout) -> Tensor:
    return readout.hidden_BLD


def _logits(readout: Readout) -> Tensor:
    return readout.logits_BV


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "last_token_cosine": Metric(_last_hidden, _cosine_gap),
        "flow": Metric(_all_hidden, _flow),
        "kl": Metric(_logits, _kl),
        "total_variation": Metric(_logits, _total_variation),
    }
)

ANSWER_METRICS: Mapping[str, str] = MappingProxyType(
    {
        "answer_cosine": "last_token_cosine",
        "answer_kl": "kl",
        "answer_total_variation": "total_variation",
    }
)
"""Metrics along the unpruned model's own answer → what is averaged over its positions."""
