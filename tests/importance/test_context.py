"""Stored attention answers every bound as the attention itself does."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.importance.batches import as_stored
from vflowopt_search.errors import UnsupportedError
from vflowopt_search.importance.context import ContextAttention, ContextMap, context_map
from vflowopt_search.importance.scores import ReceivedAttention, context_tokens
from vflowopt_search.importance.signals import ProjectedAttention


def projected(seed: int, tiles: int, patches: int, prefix: int) -> ProjectedAttention:
    generator = torch.Generator().manual_seed(seed)
    size = (tiles, 2, prefix + patches, 4)
    query_THQD = torch.randn(size, generator=generator) * 2
    key_THQD = torch.randn(size, generator=generator) * 2
    return ProjectedAttention(query_THQD, key_THQD, 0.5, prefix)


@given(
    seed=st.integers(0, 2**20),
    tiles=st.integers(1, 4),
    patches=st.integers(1, 20),
    prefix=st.integers(0, 2),
    threshold=st.floats(0, 4),
)
def test_every_threshold_scores_as_from_queries_and_keys(
    seed: int, tiles: int, patches: int, prefix: int, threshold: float
) -> None:
    live = projected(seed, tiles, patches, prefix)
    score = ReceivedAttention(context_threshold=threshold)
    # a patch within rounding of the bound may fall on either side of it
    received_TP = live.received()
    bound_T = threshold * received_TP.mean(-1, keepdim=True)
    if ((received_TP - bound_T).abs() < 1e-6).any():
        return
    torch.testing.assert_close(
        score.relevance(as_stored(live)), score.relevance(live), rtol=0, atol=1e-6
    )


def test_equal_patches_are_selected_together() -> None:
    """All queries attend alike, so that every patch but one receives the same."""
    row_Q = torch.tensor([0.4, 0.2, 0.2, 0.2])
    map_TQQ = row_Q.expand(1, 4, 4).contiguous()
    stored = ContextAttention([context_map(map_TQQ, 0, 0)], map_TQQ.device)
    for threshold, selected in ((0.0, 4), (1.0, 1), (9.0, 1)):
        context_TP = context_tokens(stored.received(), threshold)
        assert int(context_TP.sum()) == selected
        torch.testing.assert_close(stored.relevance(context_TP), row_Q[None])


def test_suffix_tokens_ask_and_are_not_answered() -> None:
    map_TQQ = torch.rand(2, 7, 7, generator=torch.Generator().manual_seed(0))
    stored = ContextAttention([context_map(map_TQQ, 1, 2)], map_TQQ.device)
    torch.testing.assert_close(stored.received(), map_TQQ[:, :, 1:5].mean(1))
    everything = torch.ones(2, 4, dtype=torch.bool)
    torch.testing.assert_close(stored.relevance(everything), map_TQQ[:, 1:5, 1:5].mean(1))


def left_out(received_TP: Tensor) -> Tensor:
    """All patches but the strongest."""
    return received_TP < received_TP.amax(-1, keepdim=True)


def test_what_no_bound_selects_is_refused() -> None:
    stored = as_stored(projected(0, 2, 9, 0))
    with pytest.raises(UnsupportedError, match="leave out a patch that receives at least as much"):
        stored.relevance(left_out(stored.received()))


def test_an_image_reads_one_row_of_each_tile_however_large_the_map() -> None:
    """What moves to the device is as small as the scores, not as the map."""
    stored = as_stored(projected(1, 3, 16, 1))
    moved = stored.relevance(context_tokens(stored.received(), 1.0))
    assert moved.shape == (3, 16)
    maps = [part.from_first_TKP for part in stored.parts if isinstance(part, ContextMap)]
    assert moved.nbytes * 16 == sum(map_TKP.nbytes for map_TKP in maps)
