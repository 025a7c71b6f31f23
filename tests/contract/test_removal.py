"""Every family: removing tokens equals masking them; keeping all changes nothing, to the bit."""

from __future__ import annotations

import pytest
import torch

from tests.contract.models import every_family, inputs_of, model_of
from tests.contract.oracle import generate, masked_logits
from tests.families import tiny
from tests.pruning.oracle import strategy_of
from vflowopt_search.adapters.registry import adapter_for
from vflowopt_search.deploy import pruned
from vflowopt_search.strategy import Importance, Recycling, Strategy

STAGES = {"0": ((0, 0.4),), "0+1": ((0, 0.5), (1, 0.6)), "0+3": ((0, 0.6), (3, 0.5))}
FP32 = 5e-5


def strategy_for(name: str, stages: str, *, recycling: bool, positions: str) -> Strategy:
    """A strategy whose importance comes from the last vision layer that may score."""
    layer = adapter_for(model_of(name)).vision_layers[-1]
    return strategy_of(
        *STAGES[stages],
        importance=Importance(vision_layer=layer, context_threshold=1.1),
        recycling=Recycling(cell=2.0) if recycling else None,
        positions=positions,
    )


def gap(name: str, strategy: Strategy, attn: str, dtype: torch.dtype) -> float:
    """Largest difference of any logit between removing and masking."""
    model, inputs = model_of(name, attn, dtype), inputs_of(name, dtype)
    with pruned(model, strategy) as applied:
        steps = generate(model, inputs)
    last = applied.last
    assert last is not None
    ends = [per_layer[-1] for per_layer in last.tokens_per_layer]
    assert all(end < n for end, n in zip(ends, last.visual_tokens, strict=True))  # not a no-op
    masked = masked_logits(tiny(name), model, inputs, steps.ids, last, strategy)
    return float((steps.logits - masked).abs().max())


@every_family
@pytest.mark.parametrize("recycling", [False, True])
@pytest.mark.parametrize("stages", STAGES)
def test_removal_equals_masking(name: str, stages: str, recycling: bool) -> None:
    strategy = strategy_for(name, stages, recycling=recycling, positions="original")
    assert gap(name, strategy, "sdpa", torch.float32) <= FP32


@every_family
def test_removal_equals_masking_with_eager_attention(name: str) -> None:
    strategy = strategy_for(name, "0+3", recycling=True, positions="original")
    assert gap(name, strategy, "eager", torch.float32) <= FP32


@every_family
def test_removal_equals_masking_with_packed_positions(name: str) -> None:
    offered = adapter_for(model_of(name)).family.positions
    positions = "packed" if "packed" in offered else "original"
    strategy = strategy_for(name, "0+1", recycling=True, positions=positions)
    assert gap(name, strategy, "sdpa", torch.float32) <= FP32


@every_family
@pytest.mark.parametrize("stages", ["0", "0+3"])
def test_removal_equals_masking_in_double_precision(name: str, stages: str) -> None:
    # transformers' eager attention takes its softmax in fp32
    strategy = strategy_for(name, stages, recycling=True, positions="original")
    assert gap(name, strategy, "sdpa", torch.float64) <= tiny(name).fp64


@every_family
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_keeping_everything_is_bit_identical(name: str, attn: str) -> None:
    model, inputs = model_of(name, attn), inputs_of(name)
    layer = adapter_for(model).vision_layers[-1]
    everything = strategy_of(
        (0, 1.0), (3, 1.0), recycling=Recycling(cell=2.0), importance=Importance(vision_layer=layer)
    )
    plain = generate(model, inputs)
    with pruned(model, everything):
        kept = generate(model, inputs)
    assert torch.equal(plain.ids, kept.ids)
    assert torch.equal(plain.logits, kept.logits)
