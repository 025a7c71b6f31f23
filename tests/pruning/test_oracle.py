"""Removing tokens equals masking them; keeping all of them changes nothing, to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.pruning.oracle import generate, masked_logits, ragged_inputs, strategy_of
from tests.tiny import FAMILIES, tiny_model
from vflowopt_search.deploy import pruned
from vflowopt_search.pruning import engine as engine_module
from vflowopt_search.pruning.masks import LayerMasks
from vflowopt_search.pruning.positions import positions_at
from vflowopt_search.pruning.state import Segment
from vflowopt_search.strategy import Recycling, Strategy

STRATEGIES = {
    "stage 0": strategy_of((0, 0.4)),
    "stages 0 and 1": strategy_of((0, 0.5), (1, 0.6)),
    "stages 0 and 3": strategy_of((0, 0.6), (3, 0.5)),
    "stages 0, 2 and 4": strategy_of((0, 0.7), (2, 0.6), (4, 0.5)),
    "a later stage only": strategy_of((2, 0.3)),
    "packed positions": strategy_of((0, 0.5), (3, 0.5), positions="packed"),
    "recycling": strategy_of((0, 0.5), (3, 0.5), recycling=Recycling(cell=2.0)),
    "recycling, packed": strategy_of((0, 0.4), recycling=Recycling(cell=2), positions="packed"),
    "text attention": strategy_of((0, 0.6), (3, 0.5), scores=[None, "text_attention"]),
    "separators kept": strategy_of((0, 0.5), (2, 0.5), separators="keep"),
}
every_family = pytest.mark.parametrize("family", FAMILIES)


def gap(family: str, strategy: Strategy, attn: str, dtype: torch.dtype) -> float:
    """Largest difference of any logit between removing and masking."""
    model, inputs = tiny_model(family, attn=attn, dtype=dtype), ragged_inputs(family, dtype)
    with torch.no_grad():
        with pruned(model, strategy) as applied:
            steps = generate(model, inputs)
        assert applied.last is not None
        masked_BTV = masked_logits(model, inputs, steps.ids, applied.last, strategy)
    return float((steps.logits - masked_BTV).abs().max())


@every_family
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_removal_equals_masking_in_fp32(family: str, attn: str, name: str) -> None:
    assert gap(family, STRATEGIES[name], attn, torch.float32) <= 5e-5


@every_family
@pytest.mark.parametrize("name", STRATEGIES)
def test_removal_equals_masking_in_fp64(family: str, name: str) -> None:
    # transformers' eager attention takes its softmax in fp32, and is NaN under padding in fp64
    assert gap(family, STRATEGIES[name], "sdpa", torch.float64) <= 1e-9


@every_family
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_keeping_everything_is_bit_identical(family: str, attn: str) -> None:
    model, inputs = tiny_model(family, attn=attn), ragged_inputs(family)
    plain = generate(model, inputs)
    with pruned(model, strategy_of((0, 1.0), (3, 1.0), recycling=Recycling(cell=2.0))):
        kept = generate(model, inputs)
    assert torch.equal(plain.ids, kept.ids)
    assert torch.equal(plain.logits, kept.logits)


def first_positions(kwargs: dict[str, Any], place_BK: Tensor) -> dict[str, Any]:
    """A broken engine: survivors get the positions of the first tokens, not their own."""
    shifted = torch.arange(place_BK.shape[1]).expand_as(place_BK)
    return _true_positions_at(kwargs, shifted)


def padding_seen(self: LayerMasks, segment: Segment, layer: int, num_new: int) -> Tensor:
    """A broken engine: later layers look at padding."""
    return torch.ones_like(_true_valid(self, segment, layer, num_new))


def neighbours_kept(self: Segment, other: Segment) -> Tensor:
    """A broken engine: each survivor is replaced by the token before it."""
    return (_true_places(self, other) - 1).clamp(min=0)


_true_positions_at = positions_at
_true_valid = LayerMasks.valid
_true_places = Segment.places
BROKEN = [
    (engine_module, "positions_at", first_positions),
    (LayerMasks, "valid", padding_seen),
    (Segment, "places", neighbours_kept),
]


@pytest.mark.parametrize(("where", "name", "broken"), BROKEN)
def test_the_oracle_catches_a_broken_engine(
    where: Any, name: str, broken: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, name, broken)
    assert gap("llava_onevision", STRATEGIES["stages 0 and 3"], "sdpa", torch.float32) > 0.1
