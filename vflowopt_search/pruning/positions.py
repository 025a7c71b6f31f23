"""Position ids and rotary embeddings of the tokens that are left.

Shape suffixes: B = batch rows, S = sequence before, K = tokens left, D = features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vflowopt_search.errors import UnsupportedError
from vflowopt_search.pruning.state import Segment


def gather_last(values: Tensor, index_BK: Tensor) -> Tensor:
    """Take columns of (..., B or 1, S) by per-row indices: (..., B, K)."""
    shape = (*values.shape[:-2], *index_BK.shape)
    expanded = values.expand(*values.shape[:-2], index_BK.shape[0], values.shape[-1])
    return expanded.gather(-1, index_BK.expand(shape))


def packed(position_ids_BK: Tensor, first: Segment) -> tuple[Tensor, Tensor]:
    """Consecutive positions from each row's first one, (B, K), and how far the last moved, (B,).

    Raises:
        UnsupportedError: positions have several axes (M-RoPE).
    """
    if position_ids_BK.dim() != 2:
        raise UnsupportedError(
            "positions 'packed' needs one-dimensional positions, but this model rotates by "
            "several (M-RoPE); use positions 'original'"
        )
    step_BK = (first.valid_BK.long().cumsum(1) - 1).clamp(min=0)
    start_B = position_ids_BK.gather(1, (~first.valid_BK).sum(1, keepdim=True))
    packed_BK = torch.where(first.valid_BK, start_B + step_BK, position_ids_BK)
    return packed_BK, (position_ids_BK - packed_BK)[:, -1]


def positions_after(given: Any, num_new: int, shift_B: Tensor | None, cache: Any) -> Any:
    """Position ids of the tokens behind a prompt, None where the backbone is to count them.

    Args:
        given: position ids that the backbone was given; hand-written loops may pass those of the
            whole sequence.
        num_new: new tokens.
        shift_B: how far packing moved each row's positions forward, None without packing.
        cache: knows how many tokens came before.
    """
    if given is not None and given.shape[-1] != num_new:
        given = given[..., -num_new:]
    if shift_B is None:
        return given
    if given is None:
        seen = int(cache.get_seq_length())
        given = torch.arange(seen, seen + num_new, device=shift_B.device)[None]
    return given - shift_B[:, None]


def positions_at(kwargs: dict[str, Any], place_BK: Tensor) -> dict[str, Any]:
    """Position ids and rotary embeddings of a layer's arguments, at the places given."""
    taken: dict[str, Any] = {}
    if isinstance(kwargs.get("position_ids"), Tensor):
        taken["position_ids"] = gather_last(kwargs["position_ids"], place_BK)
    rotary = kwargs.get("position_embeddings")
    if isinstance(rotary, Tensor):  # llama4 holds both parts in one complex number
        taken["position_embeddings"] = _gather_rows(rotary, place_BK)
    elif rotary is not None:
        taken["position_embeddings"] = tuple(_gather_rows(part, place_BK) for part in rotary)
    return taken


def _gather_rows(values: Tensor, index_BK: Tensor) -> Tensor:
    """Take rows of (..., B or 1, S, D) by per-row indices: (..., B, K, D)."""
    lead, dim = values.shape[:-3], values.shape[-1]
    expanded = values.expand(*lead, index_BK.shape[0], *values.shape[-2:])
    return expanded.gather(-2, index_BK[..., None].expand(*lead, *index_BK.shape, dim))
