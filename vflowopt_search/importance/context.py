"""Attention in the form in which trials ask it: summed up over the most attended patches.

The context tokens of algorithms.md 1.1 step 3 are those that receive more than some bound, so
whatever the bound, they are the first few of the patches sorted by received attention. The mean
attention from the first k of them, for every k, is as large as the map and makes a trial read one
row of it per tile, where the map would have to be read whole.

A map grows with P * P and queries and keys with P: of large tiles these are kept instead, and a
trial computes its row from them.

Shape suffixes: T = tiles, P = patches of a tile, Q = a tile's sequence in the vision encoder,
K = number of context tokens, 1..P, H = heads, D = head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vflowopt_search.errors import UnsupportedError
from vflowopt_search.importance.signals import ProjectedAttention


@dataclass(frozen=True, eq=False)
class ContextMap:
    """One encoder layer's attention over the tiles of one image, anywhere in memory.

    Attributes:
        received_TP: mean over all queries of a tile, CLS included.
        from_first_TKP: mean over the K patches that received most.
    """

    received_TP: Tensor
    from_first_TKP: Tensor

    def relevance(self, selected_TP: Tensor, device: torch.device) -> Tensor:
        """The one row of each tile that belongs to its context tokens, (T, P), where the map is."""
        received_TP = self.received_TP
        weakest_T = received_TP.masked_fill(~selected_TP, torch.inf).amin(-1)
        strongest_left_T = received_TP.masked_fill(selected_TP, -torch.inf).amax(-1)
        if bool((weakest_T <= strongest_left_T).any()):
            raise UnsupportedError(
                "the context tokens of a tile leave out a patch that receives at least as much "
                "attention as one of them; stored attention serves a bound on received attention "
                "only: select by a bound"
            )
        tile_T = torch.arange(len(selected_TP), device=selected_TP.device)
        return self.from_first_TKP[tile_T, selected_TP.sum(-1) - 1]


@dataclass(frozen=True, eq=False)
class ContextProjections:
    """The same of tiles that are so large that their queries and keys are smaller.

    Attributes:
        received_TP: mean over all queries of a tile, CLS included.
        projected: queries and keys, in the model's precision.
    """

    received_TP: Tensor
    projected: ProjectedAttention

    def relevance(self, selected_TP: Tensor, device: torch.device) -> Tensor:
        """Mean over the context tokens' queries, computed on a device, (T, P)."""
        there = replace(
            self.projected,
            query_THQD=self.projected.query_THQD.to(device),
            key_THQD=self.projected.key_THQD.to(device),
        )
        return there.relevance(selected_TP.to(device))


StoredAttention = ContextMap | ContextProjections
"""One encoder layer's attention over the tiles of one image."""


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
    """Attention of a run of images as it is stored: what a search holds for all trials."""

    parts: Sequence[StoredAttention]
    device: torch.device

    def received(self) -> Tensor:
        """Mean over all queries, shape (T, P), where it is stored: a bound is applied there."""
        return torch.cat([part.received_TP for part in self.parts])

    def relevance(self, context_TP: Tensor) -> Tensor:
        """Mean over the queries that `context_TP` selects, shape (T, P), on the device.

        Raises:
            UnsupportedError: a patch is left out that receives as much as one selected, and the
                attention is stored as a map.
        """
        selected_TP = context_TP.to(self.parts[0].received_TP.device)
        sizes = [len(part.received_TP) for part in self.parts]
        rows = [
            part.relevance(mine_TP, self.device)
            for part, mine_TP in zip(self.parts, torch.split(selected_TP, sizes), strict=True)
        ]
        return torch.cat(rows).to(self.device)
