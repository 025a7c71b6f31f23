"""Many strategies on the two plainest families, and engines broken on purpose.

Removing tokens must equal masking them; the test that says so must catch a wrong engine.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.contract.test_removal import FP32, gap
from tests.pruning.oracle import strategy_of
from vflowopt_search.pruning import forward as forward_module
from vflowopt_search.pruning.masks import LayerMasks
from vflowopt_search.pruning.positions import positions_at
from vflowopt_search.pruning.state import Segment
from vflowopt_search.strategy import Recycling

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
plain_families = pytest.mark.parametrize("name", ["llava", "llava_onevision"])


@plain_families
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_removal_equals_masking_whatever_the_strategy(name: str, attn: str, strategy: str) -> None:
    assert gap(name, STRATEGIES[strategy], attn, torch.float32) <= FP32


@plain_families
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_and_does_so_exactly(name: str, strategy: str) -> None:
    assert gap(name, STRATEGIES[strategy], "sdpa", torch.float64) <= 1e-9


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
    (forward_module, "positions_at", first_positions),
    (LayerMasks, "valid", padding_seen),
    (Segment, "places", neighbours_kept),
]


@pytest.mark.parametrize(("where", "name", "broken"), BROKEN)
def test_the_oracle_catches_a_broken_engine(
    where: Any, name: str, broken: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, name, broken)
    assert gap("llava_onevision", STRATEGIES["stages 0 and 3"], "sdpa", torch.float32) > 0.1
