"""Attention maps in the form in which trials ask them: summed up over the most attended patches.

The context tokens of algorithms.md 1.1 step 3 are those that receive more than some bound, so
whatever the bound, they are the first few of the patches sorted by received attention. The mean
attention from the first k of them, for every k, is as large as the map and makes a trial read one
row of it per tile, where the map would have to be read whole.

Shape suffixes: T = tiles, P = patches of a tile, Q = a tile's sequence in the vision encoder,
K = number of context tokens, 1..P.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vflowopt_search.errors import UnsupportedError


@dataclass(frozen=True, eq=False)
class ContextMap:
    """One encoder layer's attention over the tiles of one image, anywhere in memory.

    Attributes:
        received_TP: mean over all queries of a tile, CLS included.
        from_first_TKP: mean over the K patches that received most.
    """

    received_TP: Tensor
    from_first_TKP: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of both tensors."""
        return self.received_TP.nbytes + self.from_first_TKP.nbytes


def context_map(map_TQQ: Tensor, prefix: int, suffix: int) -> ContextMap:
    """Sum up head-mean attention maps, queries before keys.

    Args:
        map_TQQ: fp32, each query's attention adds up to 1.
        prefix: tokens before the patches, such as CLS: they ask and are not answered.
        suffix: tokens behind the patches.
    """
    patches = slice(prefix, map_TQQ.shape[-1] - suffix)
    received_TP = map_TQQ[:, :, patches].mean(1)
    attention_TPP = map_TQQ[:, patches, patches]
    order_TP = torch.argsort(received_TP, dim=-1, descending=True, stable=True)
    sorted_TPP = attention_TPP.gather(1, order_TP[..., None].expand_as(attention_TPP))
    count_P = torch.arange(1, len(order_TP[0]) + 1, device=map_TQQ.device)
    # in fp64, so that the mean over many rows is as exact as that of the rows themselves
    from_first_TKP = (sorted_TPP.double().cumsum(1) / count_P[:, None]).to(map_TQQ.dtype)
    return ContextMap(received_TP.contiguous(), from_first_TKP)


@dataclass(frozen=True, eq=False)
class ContextAttention:
    """Attention of a run of images, kept as context maps: what a search holds for all trials."""

    parts: Sequence[ContextMap]
    device: torch.device

    def received(self) -> Tensor:
        """Mean over all queries, shape (T, P)."""
        return torch.cat([part.received_TP.to(self.device) for part in self.parts])

    def relevance(self, context_TP: Tensor) -> Tensor:
        """Mean over the queries that `context_TP` selects, shape (T, P).

        Raises:
            UnsupportedError: a patch is left out that receives as much as one selected.
        """
        selected_TP = context_TP.to(self.parts[0].received_TP.device)
        sizes = [len(part.received_TP) for part in self.parts]
        rows = [
            _row_of(part, mine_TP)
            for part, mine_TP in zip(self.parts, torch.split(selected_TP, sizes), strict=True)
        ]
        return torch.cat(rows).to(self.device)


def _row_of(part: ContextMap, selected_TP: Tensor) -> Tensor:
    """The one row of each tile that belongs to its context tokens, shape (T, P)."""
    weakest_T = part.received_TP.masked_fill(~selected_TP, torch.inf).amin(-1)
    strongest_left_T = part.received_TP.masked_fill(selected_TP, -torch.inf).amax(-1)
    if bool((weakest_T <= strongest_left_T).any()):
        raise UnsupportedError(
            "the context tokens of a tile leave out a patch that receives at least as much "
            "attention as one of them; stored attention serves a bound on received attention "
            "only: select by a bound"
        )
    tile_T = torch.arange(len(selected_TP), device=selected_TP.device)
    return part.from_first_TKP[tile_T, selected_TP.sum(-1) - 1]
