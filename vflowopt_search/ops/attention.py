"""Who is attended to, without ever holding a whole attention map.

Shape suffixes: B = batch of tiles or prompts, H = heads, Q = queries, N = keys, D = head width.
Keys may have fewer heads than queries (grouped-query attention): query head h reads key head
h // (query heads / key heads). Half-precision inputs are computed and answered in fp32, others
in their own precision.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vflowopt_search.ops.precision import at_least_fp32

QUERIES_AT_ONCE = 512


def attention_received(
    query_BHQD: Tensor,
    key_BHND: Tensor,
    scale: float,
    query_weight_BQ: Tensor | None = None,
    window_N: Tensor | None = None,
) -> Tensor:
    """Mean attention that each key gets, over heads and queries, shape (B, N).

    Softmax of `scale` * q k^T over the keys, QUERIES_AT_ONCE at a time, so that memory grows
    with N and not with N * N. Each row sums to 1. `query_weight_BQ` (boolean or not negative,
    with a positive sum in every row) makes it a weighted mean over the queries (algorithms.md
    1.1, steps 2 and 4). `window_N` (integers that never fall) names each token's window: a query
    attends to the keys of its own window only, and there are as many queries as keys.
    """
    num_queries = query_BHQD.shape[2]
    key_BHND = at_least_fp32(key_BHND)
    if query_weight_BQ is None:
        query_weight_BQ = key_BHND.new_ones(query_BHQD.shape[0], num_queries)
    weight_BQ = query_weight_BQ.to(key_BHND.dtype)
    received_BN = key_BHND.new_zeros(key_BHND.shape[0], key_BHND.shape[2])
    for start in range(0, num_queries, QUERIES_AT_ONCE):
        queries = slice(start, start + QUERIES_AT_ONCE)
        logits_BHQN = _logits(query_BHQD[:, :, queries], key_BHND, scale)
        if window_N is not None:
            apart_QN = window_N[queries, None] != window_N
            logits_BHQN = logits_BHQN.masked_fill(apart_QN, float("-inf"))
        seen_BQN = logits_BHQN.softmax(-1).mean(1)
        received_BN = received_BN + (seen_BQN * weight_BQ[:, queries, None]).sum(1)
    return received_BN / weight_BQ.sum(-1, keepdim=True)


def text_attention(
    query_BHD: Tensor, key_BHND: Tensor, scale: float, valid_BN: Tensor | None = None
) -> Tensor:
    """Attention of one query per row to each key, mean over heads, shape (B, N).

    FastV's score when the query is the last prompt token (algorithms.md 3). Each row sums to 1;
    a key whose boolean `valid_BN` is false gets 0, and every row needs one that is true.
    """
    logits_BHN = _logits(query_BHD[:, :, None], at_least_fp32(key_BHND), scale).squeeze(2)
    if valid_BN is not None:
        logits_BHN = logits_BHN.masked_fill(~valid_BN[:, None], float("-inf"))
    return logits_BHN.softmax(-1).mean(1)


def _logits(query_BHQD: Tensor, key_BHND: Tensor, scale: float) -> Tensor:
    """`scale` * q k^T in fp32 at least, shape (B, H, Q, N); the keys are converted already."""
    batch, num_heads, num_queries, width = query_BHQD.shape
    # The queries of all heads that share a key head go in one product: no key is copied.
    grouped = at_least_fp32(query_BHQD).reshape(batch, key_BHND.shape[1], -1, width) * scale
    # Under autocast this product would fall to half precision, and tokens would change places.
    with torch.autocast(query_BHQD.device.type, enabled=False):
        logits = grouped @ key_BHND.transpose(-1, -2)
    return logits.reshape(batch, num_heads, num_queries, -1)
