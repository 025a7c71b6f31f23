"""Attention of the vision encoder as it is stored: which form takes less, and its named tensors.

Shape suffixes: T = tiles, H = heads, Q = tokens of a tile in the vision encoder, D = head width,
P = patches of a tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vflowopt_search.importance.context import (
    ContextMap,
    ContextProjections,
    StoredAttention,
    context_map,
)
from vflowopt_search.importance.signals import ImageGeometry, ProjectedAttention, runs_of
from vflowopt_search.reference.shelf import Tensors

SCORES_AT_ONCE = 2**26  # head x query x key products held at a time while a map is averaged


def stored_bytes(patches: int, bytes_of_patch: float) -> float:
    """Bytes that one tile takes: of its map in fp32 or of its queries and keys, what is less.

    Args:
        patches: of the tile.
        bytes_of_patch: what a patch's queries and keys take together, over all heads.
    """
    return patches * (4 + min(4 * patches, bytes_of_patch))


def stored_by_image(
    images: Sequence[ImageGeometry], runs: Sequence[ProjectedAttention]
) -> list[StoredAttention]:
    """What is stored of each image, from the attention of its run."""
    parts = []
    for mine, run in zip(runs_of(images), runs, strict=True):
        tiles = [image.num_tiles for image in mine]
        pairs = zip(
            torch.split(run.query_THQD, tiles), torch.split(run.key_THQD, tiles), strict=True
        )
        for query_THQD, key_THQD in pairs:
            one = ProjectedAttention(query_THQD, key_THQD, run.scale, run.prefix, run.suffix)
            parts.append(stored(one))
    return parts


def stored(attention: ProjectedAttention) -> StoredAttention:
    """What is stored of the tiles of one image, on the CPU, in the form that takes less.

    Either serves a trial to 1e-5 of what the eager map gives: the map is kept in fp32, queries and
    keys in the precision in which the encoder made them.
    """
    if takes_less_as_map(attention):
        return context_map(head_mean_map(attention), attention.prefix, attention.suffix)
    kept = replace(
        attention, query_THQD=_kept(attention.query_THQD), key_THQD=_kept(attention.key_THQD)
    )
    return ContextProjections(attention.received().cpu(), kept)


def takes_less_as_map(attention: ProjectedAttention) -> bool:
    """Whether the fp32 map of a tile's patches is no larger than its queries and keys.

    With the 16 heads of 72 of SigLIP-SO400M in bf16 it is up to 1152 patches, in fp32 up to 2304.
    """
    query_THQD, key_THQD = attention.query_THQD, attention.key_THQD
    patches = query_THQD.shape[2] - attention.prefix - attention.suffix
    return 4 * len(query_THQD) * patches**2 <= _bytes(query_THQD) + _bytes(key_THQD)


def head_mean_map(attention: ProjectedAttention) -> Tensor:
    """Mean over heads of softmax(q k^T * scale), fp32 (T, Q, Q), queries before keys, on the CPU.

    A few tiles at a time, and of a large tile a few queries, so that what all heads hold together
    stays within `SCORES_AT_ONCE`, or one query's row where that is more.
    """
    query_THQD, key_THQD = attention.query_THQD.float(), attention.key_THQD.float()
    heads, size = query_THQD.shape[1:3]
    # grouped-query attention: several query heads share the keys of one
    key_THQD = key_THQD.repeat_interleave(heads // key_THQD.shape[1], dim=1)
    queries_at_once = max(1, SCORES_AT_ONCE // (heads * size))
    tiles_at_once = max(1, queries_at_once // size)
    parts = []
    for query, key in zip(
        torch.split(query_THQD, tiles_at_once), torch.split(key_THQD, tiles_at_once), strict=True
    ):
        blocks = [
            (block @ key.transpose(-1, -2) * attention.scale).softmax(-1).mean(1).cpu()
            for block in torch.split(query, queries_at_once, dim=2)
        ]
        parts.append(torch.cat(blocks, dim=1))
    return torch.cat(parts)


def packed(name: str, part: StoredAttention) -> dict[str, Tensor]:
    """As tensors whose names begin with `name`."""
    if isinstance(part, ContextMap):
        return {f"{name}.received": part.received_TP, f"{name}.from_first": part.from_first_TKP}
    return {
        f"{name}.received": part.received_TP,
        f"{name}.query": part.projected.query_THQD,
        f"{name}.key": part.projected.key_THQD,
        f"{name}.scale": torch.tensor(part.projected.scale, dtype=torch.float64),
    }


def unpacked(
    name: str, tensors: Tensors, image: ImageGeometry, prefix: int, suffix: int
) -> StoredAttention | None:
    """The reverse of `packed`; None where a tensor is missing or is not of such an image."""
    received_TP = tensors.get(f"{name}.received")
    if received_TP is None or received_TP.shape != (image.num_tiles, image.tile_patches):
        return None
    from_first_TKP = tensors.get(f"{name}.from_first")
    if from_first_TKP is not None:
        return ContextMap(received_TP, from_first_TKP)
    query_THQD, key_THQD, scale = (
        tensors.get(f"{name}.{part}") for part in ("query", "key", "scale")
    )
    if query_THQD is None or key_THQD is None or scale is None:
        return None
    kept = ProjectedAttention(query_THQD, key_THQD, float(scale), prefix, suffix)
    return ContextProjections(received_TP, kept)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _kept(tensor: Tensor) -> Tensor:
    """A copy of its own on the CPU, for queries may share their memory with keys and values."""
    return tensor.detach().clone(memory_format=torch.contiguous_format).cpu()
