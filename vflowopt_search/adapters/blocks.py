"""Blocks of tokens that see each other both ways, laid over a causal mask.

Shape suffixes: B = prompts, S = their tokens, K = those of them that a layer holds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


def same_block(blocks_BK: Tensor) -> Callable[..., Any]:
    """A mask function of transformers that lets tokens of one block see each other.

    A block is a number from 0 up; -1 is no block. Places beyond the tokens are in no block: a
    static cache is longer than what it holds.
    """
    length = blocks_BK.shape[-1]

    def see(batch: Any, head: Any, query: Any, key: Any) -> Any:
        own = blocks_BK[batch, query]
        other = blocks_BK[batch, key.clamp(max=length - 1)]
        return (own == other) & (own >= 0) & (key < length)

    return see
