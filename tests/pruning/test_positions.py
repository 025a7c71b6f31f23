"""Position ids of the tokens that are left, without a model."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from vflowopt_search.pruning.positions import gather_last, packed, positions_after
from vflowopt_search.pruning.state import Segment, segment_of


def first_segment(*rows: str) -> Segment:
    """The segment of the tokens written as 1."""
    return segment_of(torch.tensor([[token == "1" for token in row] for row in rows]), 0)


def test_packed_by_hand() -> None:
    first = first_segment("110011", "001001")  # the second row holds two tokens fewer
    whole_BS = torch.tensor([[1, 2, 3, 4, 5, 6], [9, 9, 1, 2, 3, 4]])
    given_BK = gather_last(whole_BS, first.index_BK)
    packed_BK, shift_B = packed(given_BK, first)
    assert packed_BK[0].tolist() == [1, 2, 3, 4]
    assert packed_BK[1, -2:].tolist() == [1, 2]
    assert shift_B.tolist() == [2, 2]


@given(st.lists(st.booleans(), min_size=1, max_size=12).filter(any), st.integers(0, 5))
def test_packed_positions_are_consecutive_from_the_first_one(alive: list[bool], start: int) -> None:
    first = segment_of(torch.tensor([alive]), 0)
    given_BK = gather_last(torch.arange(start, start + len(alive))[None], first.index_BK)
    packed_BK, shift_B = packed(given_BK, first)
    begin = int(given_BK[0, 0])
    assert packed_BK[0].tolist() == list(range(begin, begin + sum(alive)))
    assert int(shift_B) == int(given_BK[0, -1]) - int(packed_BK[0, -1])


def test_new_tokens_go_on_behind_the_packed_ones() -> None:
    given = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7]])
    shift_B = torch.tensor([3])
    assert positions_after(given, 2, shift_B, cache=None).tolist() == [[3, 4]]
    assert positions_after(given, 2, None, cache=None).tolist() == [[6, 7]]
