"""Stored attention is that of the live model, for every way in which a family attends."""

from __future__ import annotations

import pytest
import torch

from tests.importance.batches import eager_map
from tests.small_set import small_set
from tests.tiny import tiny_model, tiny_processor
from vflowopt_search.importance.signals import ProjectedAttention
from vflowopt_search.objective import build_objective
from vflowopt_search.reference import attention_maps
from vflowopt_search.reference.attention_maps import head_mean_map


@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_query_heads_that_share_keys_are_averaged_like_any_others(key_heads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    query_THQD = torch.randn(3, 4, 9, 5, generator=generator)
    key_THQD = torch.randn(3, key_heads, 9, 5, generator=generator)
    attention = ProjectedAttention(query_THQD, key_THQD, 0.3)
    shared_THQD = key_THQD.repeat_interleave(4 // key_heads, dim=1)
    expected_TQQ = eager_map(query_THQD, shared_THQD, 0.3)
    torch.testing.assert_close(head_mean_map(attention), expected_TQQ, rtol=0, atol=1e-6)
    # the live score reads the same heads
    torch.testing.assert_close(attention.received(), expected_TQQ.mean(1), rtol=0, atol=1e-6)


def test_a_few_tiles_at_a_time_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    query_THQD, key_THQD = torch.randn(2, 5, 2, 7, 4, generator=generator)
    attention = ProjectedAttention(query_THQD, key_THQD, 0.3)
    whole_TQQ = head_mean_map(attention)
    monkeypatch.setattr(attention_maps, "SCORES_AT_ONCE", 1)
    torch.testing.assert_close(head_mean_map(attention), whole_TQQ)


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
