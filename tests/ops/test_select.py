from __future__ import annotations

import pytest
import torch

from vflowopt_search.ops.select import Tokens, select_tokens


def test_each_row_keeps_its_own_tokens_in_the_given_order() -> None:
    hidden_BND = torch.arange(24.0).view(2, 4, 3)
    kept = select_tokens(Tokens(hidden_BND), torch.tensor([[3, 0], [1, 1]]))
    assert torch.equal(kept.hidden_BND[0], hidden_BND[0, [3, 0]])
    assert torch.equal(kept.hidden_BND[1], hidden_BND[1, [1, 1]])
    assert kept.position_ABN is None
    assert kept.valid_BN is None


@pytest.mark.parametrize("rows", [1, 2])
def test_positions_and_masks_go_with_their_tokens(rows: int) -> None:
    position_ABN = torch.arange(12 * rows).view(3, rows, 4)
    valid_BN = torch.tensor([[False, True, True, True], [False, False, True, True]])
    index_BK = torch.tensor([[3, 0], [1, 2]])
    kept = select_tokens(Tokens(torch.zeros(2, 4, 1), position_ABN, valid_BN), index_BK)
    assert kept.position_ABN is not None and kept.valid_BN is not None
    assert torch.equal(kept.position_ABN[:, 0], position_ABN[:, 0, [3, 0]])
    assert torch.equal(kept.position_ABN[:, 1], position_ABN[:, rows - 1, [1, 2]])
    assert kept.valid_BN.tolist() == [[True, False], [False, True]]


def test_keeping_everything_changes_no_bit() -> None:
    hidden_BND = torch.randn(2, 5, 3, dtype=torch.bfloat16)
    kept_BND = select_tokens(Tokens(hidden_BND), torch.arange(5).expand(2, 5)).hidden_BND
    assert kept_BND.dtype == torch.bfloat16
    assert torch.equal(kept_BND, hidden_BND)


def test_gradients_reach_the_kept_tokens_only() -> None:
    hidden_BND = torch.randn(1, 3, 2, requires_grad=True)
    kept_BND = select_tokens(Tokens(hidden_BND), torch.tensor([[2, 0]])).hidden_BND
    (grad_BND,) = torch.autograd.grad(kept_BND.sum(), hidden_BND)
    assert grad_BND[0, :, 0].tolist() == [1, 0, 1]
