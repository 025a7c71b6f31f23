"""Who is attended to, without ever holding a whole attention map.

Shape suffixes: B = batch of tiles or prompts, H = heads, Q = queries, N = keys, D = head width.
Keys may have fewer heads than queries (grouped-query attention): query head h reads key head
h // (query heads / key heads). Half-precision inputs are computed and answered in fp32, others
in their own precision.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vflowopt_search.ops.precision import at_least_fp32

QUERIES_AT_ONCE = 512
CACHED = 2**21  # logits


def attention_received(
    query_BHQD: Tensor,
    key_BHND: Tensor,
    scale: float,
    query_weight_BQ: Tensor | None = None,
    window_N: Tensor | None = None,
) -> Tensor:
    """Mean attention that each key gets, over heads and queries, shape (B, N).

    Softmax of `scale` * q k^T over the keys, QUERIES_AT_ONCE or fewer at a time, so that memory
    grows with N and not with N * N. Each row sums to 1. `query_weight_BQ` (boolean or not negative,
    with a positive sum in every row) makes it a weighted mean over the queries (algorithms.md
    1.1, steps 2 and 4). `window_N` (integers that never fall) names each token's window: a query
    attends to the keys of its own window only, and there are as many queries as keys.
    """
    if query_weight_BQ is None:
        query_weight_BQ = query_BHQD.new_ones(query_BHQD.shape[0], query_BHQD.shape[2])
    at_once = _rows_at_once(query_BHQD, key_BHND)
    received = []
    for row in range(0, max(1, query_BHQD.shape[0]), at_once):
        rows = slice(row, row + at_once)
        query, weight_BQ = query_BHQD[rows], query_weight_BQ[rows]
        if at_once == 1 and window_N is None:
            query, weight_BQ = _that_count(query, weight_BQ)
        received.append(_received(query, key_BHND[rows], scale, weight_BQ, window_N))
    return torch.cat(received)


def _received(
    query_BHQD: Tensor,
    key_BHND: Tensor,
    scale: float,
    weight_BQ: Tensor,
    window_N: Tensor | None,
) -> Tensor:
    """`attention_received` of the rows that are computed together."""
    key_BHND = at_least_fp32(key_BHND)
    weight_BQ = weight_BQ.to(key_BHND.dtype)
    received_BHN = key_BHND.new_zeros(*query_BHQD.shape[:2], key_BHND.shape[2])
    size = queries_at_once(query_BHQD.device)
    several = query_BHQD.shape[2] > size
    room = _room(query_BHQD[:, :, :size], key_BHND, weight_BQ) if several else None
    for start in range(0, query_BHQD.shape[2], size):
        queries = slice(start, start + size)
        apart_QN = None if window_N is None else window_N[queries, None] != window_N
        attention_BHQN = _attention(query_BHQD[:, :, queries], key_BHND, scale, apart_QN, room)
        weight_B11Q = weight_BQ[:, None, None, queries]
        # Under autocast this product, too, would fall to half precision.
        with torch.autocast(query_BHQD.device.type, enabled=False):
            received_BHN = received_BHN + (weight_B11Q @ attention_BHQN).squeeze(2)
    return received_BHN.mean(1) / weight_BQ.sum(-1, keepdim=True)


def _room(query_BHQD: Tensor, key_BHND: Tensor, weight_BQ: Tensor) -> Tensor | None:
    """Memory for the attention of a block of queries, which all blocks share.

    Megabytes that are asked for anew may take longer to arrive than the softmax takes to fill
    them. None where a gradient is wanted, which needs the attention of every block.
    """
    asked = (query_BHQD, key_BHND, weight_BQ)
    if torch.is_grad_enabled() and any(each.requires_grad for each in asked):
        return None
    return key_BHND.new_empty(query_BHQD[..., 0].numel() * key_BHND.shape[2])


def _attention(
    query_BHQD: Tensor,
    key_BHND: Tensor,
    scale: float,
    apart_QN: Tensor | None,
    room: Tensor | None,
) -> Tensor:
    """Softmax of the logits but for those `apart_QN`, (B, H, Q, N), in `room` if there is some."""
    shape = (*query_BHQD.shape[:3], key_BHND.shape[2])
    out_BHQN = None if room is None else room[: math.prod(shape)].view(shape)
    logits_BHQN = _logits(query_BHQD, key_BHND, scale, out_BHQN)
    if apart_QN is not None:
        logits_BHQN = logits_BHQN.masked_fill(apart_QN, float("-inf"))
    return torch.softmax(logits_BHQN, -1, out=out_BHQN)


def queries_at_once(device: torch.device) -> int:
    """Queries whose logits are held together: on a CPU few enough to stay in its cache."""
    return min(128, QUERIES_AT_ONCE) if device.type == "cpu" else QUERIES_AT_ONCE


def _rows_at_once(query_BHQD: Tensor, key_BHND: Tensor) -> int:
    """Tiles or prompts computed together; on a CPU as many as have logits that it can cache."""
    batch, num_heads, num_queries, _ = query_BHQD.shape
    if query_BHQD.device.type != "cpu":
        return max(2, batch)
    num_queries = min(num_queries, queries_at_once(query_BHQD.device))
    return max(1, CACHED // max(1, num_heads * num_queries * key_BHND.shape[2]))


def _that_count(query_1HQD: Tensor, weight_1Q: Tensor) -> tuple[Tensor, Tensor]:
    """Of one row, the queries that have a weight."""
    index_Q = weight_1Q[0].nonzero().squeeze(1)
    if len(index_Q) == weight_1Q.shape[1]:
        return query_1HQD, weight_1Q
    return query_1HQD[:, :, index_Q], weight_1Q[:, index_Q]


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


def _logits(
    query_BHQD: Tensor, key_BHND: Tensor, scale: float, out_BHQN: Tensor | None = None
) -> Tensor:
    """`scale` * q k^T in fp32 at least, shape (B, H, Q, N); the keys are converted already."""
    batch, num_heads, num_queries, width = query_BHQD.shape
    # The queries of all heads that share a key head go in one product: no key is copied.
    grouped = at_least_fp32(query_BHQD).reshape(batch, key_BHND.shape[1], -1, width) * scale
    # Under autocast this product would fall to half precision, and tokens would change places.
    with torch.autocast(query_BHQD.device.type, enabled=False):
        out = None if out_BHQN is None else out_BHQN.view(*grouped.shape[:3], -1)
        logits = torch.matmul(grouped, key_BHND.transpose(-1, -2), out=out)
    return logits.reshape(batch, num_heads, num_queries, -1)
