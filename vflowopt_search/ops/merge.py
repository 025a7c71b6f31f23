"""Recycling: many tokens become one (algorithms.md 1.2).

Shape suffixes: N = tokens, D = feature width, G = groups.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vflowopt_search.ops.precision import at_least_fp32


def merge_tokens(features_ND: Tensor, weight_N: Tensor, group_N: Tensor, num_groups: int) -> Tensor:
    """Weighted mean of the tokens of each group, shape (G, D), in the features' dtype.

    `group_N` (int64) names each token's group, 0..num_groups - 1, or -1 for a token that is not
    merged. Weights below 0 count as 0. A group whose weights sum to 0 gets the plain mean, one
    without members gets zeros. Sums are taken in fp32 at least.
    """
    # Tokens of group -1 go to one extra group at the end, which is left out of the answer.
    group_N = torch.where(group_N < 0, num_groups, group_N)
    share_N = _shares(at_least_fp32(weight_N).clamp(min=0), group_N, num_groups + 1)
    shared_ND = at_least_fp32(features_ND) * share_N[:, None]
    merged = shared_ND.new_zeros(num_groups + 1, features_ND.shape[1])
    merged = merged.index_add(0, group_N, shared_ND)
    return merged[:num_groups].to(features_ND.dtype)


def _shares(weight_N: Tensor, group_N: Tensor, num_groups: int) -> Tensor:
    """Each token's share of its group; shares of a group sum to 1."""
    zero_G = weight_N.new_zeros(num_groups)
    total_N = zero_G.index_add(0, group_N, weight_N)[group_N]
    count_N = zero_G.index_add(0, group_N, torch.ones_like(weight_N))[group_N]
    # Dividing by 1 where the total is 0 keeps NaN out of the gradients of the other branch.
    weighted_N = weight_N / torch.where(total_N > 0, total_N, 1)
    return torch.where(total_N == 0, 1 / count_N, weighted_N)
