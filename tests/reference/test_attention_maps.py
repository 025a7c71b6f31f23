"""Stored attention is that of the live model, for every way in which a family attends."""

from __future__ import annotations

import pytest
import torch

from tests.small_set import small_set
from tests.tiny import tiny_model, tiny_processor
from vflowopt_search.objective import build_objective


@pytest.mark.parametrize("harm", ["other shape", "one missing", "empty"])
def test_maps_that_are_not_of_these_images_are_computed_again(harm: str) -> None:
    objective = build_objective(tiny_model("llava"), tiny_processor("llava"), small_set(2))
    maps = objective.source.maps
    before = maps.attention(1, [0, 1])["image"][0].received()
    name = maps._name(1, 0)
    stored = maps.shelf.get(name)
    assert stored is not None
    harmed = {
        "other shape": {key: value[..., :-1].contiguous() for key, value in stored.items()},
        "one missing": {k: value for k, value in stored.items() if not k.endswith("from_first")},
        "empty": {},
    }[harm]
    maps.shelf.put(name, harmed)
    after = maps.attention(1, [0, 1])["image"][0].received()
    torch.testing.assert_close(after, before)
    kept = maps.shelf.get(name)
    assert kept is not None and {k: v.shape for k, v in kept.items()} == {
        k: v.shape for k, v in stored.items()
    }
