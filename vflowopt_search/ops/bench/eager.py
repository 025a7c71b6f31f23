"""What the ops replace: whole attention maps, and Python loops over patches, cells and rows.

Shape suffixes: as at the definitions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vflowopt_search.ops.select import Tokens


def patch_entropy(gray_NK: Tensor) -> Tensor:
    """One histogram after the other."""
    share = [torch.bincount(patch_K.int(), minlength=256) / len(patch_K) for patch_K in gray_NK]
    return torch.stack([-(p[p > 0] * p[p > 0].log2()).sum() for p in share])


def attention_received(
    query_BHQD: Tensor, key_BHND: Tensor, scale: float, weight_BQ: Tensor | None = None
) -> Tensor:
    """Mean over the rows of the whole map, in fp32."""
    map_BQN = _map(query_BHQD, key_BHND, scale).mean(1)
    if weight_BQ is None:
        return map_BQN.mean(1)
    return (map_BQN * weight_BQ[..., None]).sum(1) / weight_BQ.sum(-1, keepdim=True)


def text_attention(query_BHD: Tensor, key_BHND: Tensor, scale: float) -> Tensor:
    """The last row of the whole map of the prompt, as models with eager attention give it."""
    key_BHND = key_BHND.repeat_interleave(query_BHD.shape[1] // key_BHND.shape[1], dim=1)
    query_BHND = query_BHD[:, :, None].expand_as(key_BHND)
    return _map(query_BHND, key_BHND, scale)[:, :, -1].mean(1)


def merge_tokens(features_ND: Tensor, weight_N: Tensor, group_N: Tensor, num_groups: int) -> Tensor:
    """One cell after the other."""
    cells = []
    for group in range(num_groups):
        members_M = (group_N == group).nonzero().squeeze(1)
        weight_M = weight_N[members_M]
        mean_D = (weight_M[:, None] * features_ND[members_M].float()).sum(0) / weight_M.sum()
        cells.append(mean_D.to(features_ND.dtype))
    return torch.stack(cells)


def select_tokens(tokens: Tokens, index_BK: Tensor) -> Tokens:
    """One row and one tensor after the other."""
    hidden_BND, position_ABN, valid_BN = tokens
    rows = list(enumerate(index_BK))
    return Tokens(
        torch.stack([hidden_BND[b, index_K] for b, index_K in rows]),
        None
        if position_ABN is None
        else torch.stack([position_ABN[:, b, index_K] for b, index_K in rows], 1),
        None if valid_BN is None else torch.stack([valid_BN[b, index_K] for b, index_K in rows]),
    )


def _map(query_BHQD: Tensor, key_BHND: Tensor, scale: float) -> Tensor:
    logits_BHQN = query_BHQD @ key_BHND.transpose(-1, -2) * scale
    return logits_BHQN.softmax(-1, dtype=torch.float32)
