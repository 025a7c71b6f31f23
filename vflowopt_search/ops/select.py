"""Keeping some tokens of each row.

Shape suffixes: B = batch, N = tokens, K = kept tokens, D = feature width, A = axes of a position
(one, or three with M-RoPE).
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Tokens(NamedTuple):
    """What goes along when tokens are dropped.

    Attributes:
        hidden_BND: hidden states.
        position_ABN: position ids; one row may serve the whole batch.
        valid_BN: False at padding.
    """

    hidden_BND: Tensor
    position_ABN: Tensor | None = None
    valid_BN: Tensor | None = None


def select_tokens(tokens: Tokens, index_BK: Tensor) -> Tokens:
    """Tokens `index_BK` (int64, 0..N-1) of each row, in that order; differentiable."""
    hidden_BND, position_ABN, valid_BN = tokens
    if position_ABN is not None:
        position_ABN = position_ABN.expand(-1, len(index_BK), -1)
        position_ABN = position_ABN.gather(2, index_BK.expand(len(position_ABN), -1, -1))
    return Tokens(
        hidden_BND.gather(1, index_BK[..., None].expand(-1, -1, hidden_BND.shape[-1])),
        position_ABN,
        None if valid_BN is None else valid_BN.gather(1, index_BK),
    )
