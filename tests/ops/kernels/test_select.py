from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.ops.kernels.memory import DEVICE, framed, poisoned
from vflowopt_search.ops import select as definition
from vflowopt_search.ops.kernels import select as kernel
from vflowopt_search.ops.select import Tokens

SHAPES = [(1, 1, 1, 1), (2, 19, 11, 40), (3, 5, 5, 515), (1, 9, 0, 7), (2, 7, 17, 1024)]  # BNKD
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def assert_same_bits(kept: Tokens, expected: Tokens) -> None:
    for one, other in zip(kept, expected, strict=True):
        if other is None:
            assert one is None
        else:
            assert isinstance(one, Tensor) and one.dtype == other.dtype
            assert torch.equal(one, other)


@pytest.mark.parametrize(("batch", "tokens", "kept", "width"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axes", [0, 1, 3])
def test_selecting_is_the_definitions(
    batch: int, tokens: int, kept: int, width: int, dtype: torch.dtype, axes: int
) -> None:
    hidden_BND = torch.randn(batch, tokens, width, device=DEVICE).to(dtype)
    index_BK = torch.randint(tokens, (batch, kept), device=DEVICE)
    position_ABN = torch.randint(2**40, (axes, batch, tokens), device=DEVICE)
    whole = Tokens(
        framed(hidden_BND),
        framed(position_ABN) if axes else None,
        framed(torch.rand(batch, tokens, device=DEVICE) > 0.5) if axes else None,
    )
    with poisoned():
        answer = kernel.select_tokens(whole, framed(index_BK))
    assert_same_bits(answer, definition.select_tokens(whole, index_BK))


def test_one_row_of_positions_and_of_indices_serves_the_whole_batch() -> None:
    hidden_BND = torch.randn(3, 10, 16, device=DEVICE)
    position_ABN = torch.arange(20, device=DEVICE).view(2, 1, 10)
    index_BK = torch.tensor([9, 0, 4], device=DEVICE).expand(3, 3)
    whole = Tokens(hidden_BND, position_ABN)
    with poisoned():
        answer = kernel.select_tokens(whole, index_BK)
    assert_same_bits(answer, definition.select_tokens(whole, index_BK))


def by_columns(values: Tensor) -> Tensor:
    """The same values, with tokens further apart than rows."""
    return values.transpose(-1, -2).contiguous().transpose(-1, -2)


def test_every_layout_is_read_as_it_is() -> None:
    whole = Tokens(
        by_columns(torch.randn(3, 10, 16, device=DEVICE)),
        by_columns(torch.arange(60, device=DEVICE).view(2, 3, 10)),
        by_columns(torch.arange(30, device=DEVICE).view(3, 10) % 3 == 0),
    )
    index_BK = by_columns(torch.randint(10, (3, 4), device=DEVICE))
    with poisoned():
        answer = kernel.select_tokens(whole, index_BK)
    assert_same_bits(answer, definition.select_tokens(whole, index_BK))
