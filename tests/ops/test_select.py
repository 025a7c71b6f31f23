from __future__ import annotations

import torch

from vflowopt_search.ops.select import select_tokens


def test_each_row_keeps_its_own_tokens_in_the_given_order() -> None:
    hidden_BND = torch.arange(24.0).view(2, 4, 3)
    kept_BKD = select_tokens(hidden_BND, torch.tensor([[3, 0], [1, 1]]))
    assert torch.equal(kept_BKD[0], hidden_BND[0, [3, 0]])
    assert torch.equal(kept_BKD[1], hidden_BND[1, [1, 1]])


def test_keeping_everything_changes_no_bit() -> None:
    hidden_BND = torch.randn(2, 5, 3, dtype=torch.bfloat16)
    kept_BKD = select_tokens(hidden_BND, torch.arange(5).expand(2, 5))
    assert kept_BKD.dtype == torch.bfloat16
    assert torch.equal(kept_BKD, hidden_BND)


def test_gradients_reach_the_kept_tokens_only() -> None:
    hidden_BND = torch.randn(1, 3, 2, requires_grad=True)
    kept_BKD = select_tokens(hidden_BND, torch.tensor([[2, 0]]))
    (grad_BND,) = torch.autograd.grad(kept_BKD.sum(), hidden_BND)
    assert grad_BND[0, :, 0].tolist() == [1, 0, 1]
