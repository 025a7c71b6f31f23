"""What the launches of the kernels share: widths of heads, strides."""

from __future__ import annotations

import math
from typing import NamedTuple

import triton
from torch import Tensor

# Said out loud because Triton warns about its default: logits are scaled by the same instruction
# that subtracts their row's maximum.
FUSED = {"enable_fp_fusion": True}

SMALLEST_DOT = 16
WIDEST_VECTOR = 16


class HeadWidth(NamedTuple):
    """How the features of a head are cut for products, whose widths are powers of two.

    Attributes:
        D: features of a head.
        MAIN: width of the first product, at least 16.
        REST: width of the second, 0 where one is enough.
    """

    D: int
    MAIN: int
    REST: int


def head_width(width: int) -> HeadWidth:
    """The cheapest cut of a head: 72 features, say, as 64 + 16 and not as 128."""
    above: int = max(SMALLEST_DOT, triton.next_power_of_2(width))
    below = above // 2
    rest: int = max(SMALLEST_DOT, triton.next_power_of_2(max(1, width - below)))
    if below < SMALLEST_DOT or below + rest >= above:
        return HeadWidth(width, above, 0)
    return HeadWidth(width, below, rest)


def rows_contiguous(values: Tensor) -> Tensor:
    """`values`, copied only where its last axis is not contiguous."""
    return values if values.stride(-1) == 1 or values.shape[-1] == 1 else values.contiguous()


def common_factor(*values: Tensor) -> int:
    """Largest power of two up to 16 that divides every stride but the last.

    Kernels get strides divided by it and multiply again: so the compiler knows that rows begin
    at multiples of it and loads whole vectors, also where a head has 72 features.
    """
    return math.gcd(WIDEST_VECTOR, *(step for value in values for step in value.stride()[:-1]))
