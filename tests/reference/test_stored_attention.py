"""Both forms of stored attention give what the eager map gives, and the smaller is taken."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.importance.batches import eager_map
from vflowopt_search.importance.context import ContextAttention, ContextMap, ContextProjections
from vflowopt_search.importance.scores import context_tokens
from vflowopt_search.importance.signals import ImageGeometry, ProjectedAttention
from vflowopt_search.reference import stored_attention
from vflowopt_search.reference.stored_attention import (
    head_mean_map,
    packed,
    stored,
    stored_by_image,
    stored_bytes,
    unpacked,
)

CPU = torch.device("cpu")
ROOMY = 2**26


def projected(
    *,
    tiles: int = 2,
    heads: int = 4,
    key_heads: int = 4,
    patches: int = 9,
    prefix: int = 1,
    suffix: int = 0,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> ProjectedAttention:
    generator = torch.Generator().manual_seed(seed)
    size = prefix + patches + suffix
    query_THQD = torch.randn(tiles, heads, size, 5, generator=generator).to(dtype)
    key_THQD = torch.randn(tiles, key_heads, size, 5, generator=generator).to(dtype)
    return ProjectedAttention(query_THQD, key_THQD, 0.7, prefix, suffix)


def image(tiles: int, patches: int) -> ImageGeometry:
    grid: Any = None
    return ImageGeometry(tiles, patches, grid, pack=lambda map_TP: map_TP)


@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("at_once", [1, 40, ROOMY])
def test_the_mean_over_heads_is_that_of_the_eager_map(
    key_heads: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few queries are computed together; query heads may share keys."""
    monkeypatch.setattr(stored_attention, "SCORES_AT_ONCE", at_once)
    attention = projected(tiles=3, key_heads=key_heads)
    shared_THQD = attention.key_THQD.repeat_interleave(4 // key_heads, dim=1)
    expected_TQQ = eager_map(attention.query_THQD, shared_THQD, 0.7)
    torch.testing.assert_close(head_mean_map(attention), expected_TQQ, rtol=0, atol=1e-6)


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the elements of the largest tensor that is made."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [one.numel() for one in tree_leaves(out) if isinstance(one, Tensor)]
        self.elements = max([self.elements, *made])
        return out


def test_the_maps_of_all_heads_are_never_held_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_attention, "SCORES_AT_ONCE", 8 * 64 * 10)
    attention = projected(tiles=1, heads=8, key_heads=2, patches=64, prefix=0)
    largest: Any = Largest()  # type: ignore[no-untyped-call]
    with largest:
        head_mean_map(attention)
    assert 64 * 64 <= largest.elements <= 8 * 64 * 10 < 8 * 64 * 64


@given(
    patches=st.integers(1, 20),
    prefix=st.integers(0, 2),
    suffix=st.integers(0, 2),
    key_heads=st.sampled_from([1, 2, 4]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    threshold=st.floats(0, 3),
    seed=st.integers(0, 2**20),
)
def test_both_forms_give_the_same_and_survive_the_shelf(
    patches: int,
    prefix: int,
    suffix: int,
    key_heads: int,
    dtype: torch.dtype,
    threshold: float,
    seed: int,
) -> None:
    attention = projected(
        patches=patches, prefix=prefix, suffix=suffix, key_heads=key_heads, dtype=dtype, seed=seed
    )
    answers = []
    for as_map in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stored_attention, "takes_less_as_map", lambda _, chosen=as_map: chosen)
            part = stored(attention)
        assert isinstance(part, ContextMap if as_map else ContextProjections)
        back = unpacked("x", packed("x", part), image(2, patches), prefix, suffix)
        assert back is not None
        answers.append(ContextAttention([back], CPU))
    by_map, projections = answers
    torch.testing.assert_close(projections.received(), by_map.received(), rtol=1e-5, atol=1e-6)
    received_TP = by_map.received()
    if ((received_TP - threshold * received_TP.mean(-1, keepdim=True)).abs() < 1e-5).any():
        return  # a patch within rounding of the bound may fall on either side of it
    context_TP = context_tokens(received_TP, threshold)
    torch.testing.assert_close(
        projections.relevance(context_TP), by_map.relevance(context_TP), rtol=1e-5, atol=1e-6
    )


@given(
    patches=st.integers(1, 90),
    heads=st.sampled_from([1, 2, 4]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_the_smaller_form_is_taken_and_its_size_is_foretold(
    patches: int, heads: int, dtype: torch.dtype
) -> None:
    attention = projected(
        tiles=1, heads=heads, key_heads=heads, patches=patches, prefix=0, dtype=dtype
    )
    kept = packed("x", stored(attention))
    size = sum(tensor.nbytes for name, tensor in kept.items() if name != "x.scale")
    of_patch = 2 * heads * 5 * dtype.itemsize
    assert size == stored_bytes(patches, of_patch) <= 4 * patches * (patches + 1)


def test_what_a_tile_takes_grows_with_its_patches_but_no_faster_than_queries_and_keys() -> None:
    sizes = [stored_bytes(patches, 4608) for patches in range(1, 4000)]
    assert all(one < other for one, other in pairwise(sizes))
    assert stored_bytes(729, 4608) == 729 * 4 * 730
    assert stored_bytes(16384, 4608) == 16384 * (4608 + 4)


def test_queries_and_keys_are_kept_without_what_they_were_cut_from() -> None:
    """A fused projection holds values too, and a run many images."""
    fused_THQD = torch.randn(6, 3, 40, 15, generator=torch.Generator().manual_seed(0))
    attention = ProjectedAttention(fused_THQD[..., :5], fused_THQD[..., 5:10], 1.0)
    images = [image(2, 40), image(4, 40)]
    parts = stored_by_image(images, [attention])
    assert [len(part.received_TP) for part in parts] == [2, 4]
    for part, tiles in zip(parts, (2, 4), strict=True):
        assert isinstance(part, ContextProjections)
        kept = part.projected.query_THQD
        assert kept.untyped_storage().nbytes() == 4 * tiles * 3 * 40 * 5
    expected_TP = attention.relevance(torch.ones(6, 40, dtype=torch.bool))
    found_TP = ContextAttention(parts, CPU).relevance(torch.ones(6, 40, dtype=torch.bool))
    torch.testing.assert_close(found_TP, expected_TP)


@pytest.mark.parametrize("lost", ["received", "query", "key", "scale"])
def test_projections_that_are_not_whole_are_not_there(lost: str) -> None:
    tensors = packed("x", stored(projected(patches=60, prefix=0)))
    assert unpacked("x", tensors, image(2, 60), 0, 0) is not None
    assert unpacked("x", tensors, image(2, 59), 0, 0) is None
    del tensors[f"x.{lost}"]
    assert unpacked("x", tensors, image(2, 60), 0, 0) is None
