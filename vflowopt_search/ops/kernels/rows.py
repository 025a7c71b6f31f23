"""Rows of queries and keys, and their products, inside kernels.

Shape suffixes: R, C = rows, D = head width.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_rows(
    values: tl.tensor,
    row_R: tl.tensor,
    stride: tl.tensor,
    num_rows: tl.tensor,
    FACTOR: tl.constexpr,
    D: tl.constexpr,
    START: tl.constexpr,
    WIDTH: tl.constexpr,
) -> tl.tensor:
    """Features START.. of the rows, (R, WIDTH); 0 beyond the last row and the last feature."""
    d = START + tl.arange(0, WIDTH)
    inside_RD = (row_R < num_rows)[:, None] & (d < D)[None, :]
    place_RD = row_R.to(tl.int64)[:, None] * stride * FACTOR + d[None, :]
    return tl.load(values + place_RD, mask=inside_RD, other=0.0)


@triton.jit
def products(
    left_RD: tl.tensor,
    left_rest_RD: tl.tensor,
    right: tl.tensor,
    row_C: tl.tensor,
    stride: tl.tensor,
    num_rows: tl.tensor,
    FACTOR: tl.constexpr,
    D: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
) -> tl.tensor:
    """left @ right^T in fp32, (R, C); `left_rest_RD` is looked at only where REST is not 0."""
    right_CD = load_rows(right, row_C, stride, num_rows, FACTOR, D, 0, MAIN)
    # "ieee": fp32 inputs must not be rounded to TF32. Half precision is not affected.
    product_RC = tl.dot(left_RD, tl.trans(right_CD), input_precision="ieee")
    if REST > 0:
        right_CD = load_rows(right, row_C, stride, num_rows, FACTOR, D, MAIN, REST)
        product_RC = tl.dot(
            left_rest_RD, tl.trans(right_CD), acc=product_RC, input_precision="ieee"
        )
    return product_RC
