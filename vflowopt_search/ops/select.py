"""Keeping some tokens of each row.

Shape suffixes: B = batch, N = tokens, K = kept tokens, D = feature width.
"""

from __future__ import annotations

from torch import Tensor


def select_tokens(hidden_BND: Tensor, index_BK: Tensor) -> Tensor:
    """Tokens `index_BK` (int64) of each row, in that order, shape (B, K, D); differentiable."""
    return hidden_BND.gather(1, index_BK[..., None].expand(-1, -1, hidden_BND.shape[-1]))
