"""Cut what the vision encoder attended over into tiles, whatever way a family packs them.

A family's encoder gets all tiles as one batch, or one image after the other, or all images as one
long sequence; cut into tiles and grouped by runs they are all the same.

Shape suffixes: T = tiles of a run, H = heads, Q = tokens of a tile, S = all tokens in call order,
D = head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vflowopt_search.errors import UnsupportedError
from vflowopt_search.importance.signals import ImageGeometry, runs_of


@dataclass(frozen=True, eq=False)
class SeenAttention:
    """Query and key (B, H, S, D) of one call of an attention module, and the softmax scale."""

    query: Tensor
    key: Tensor
    scale: float


def cut_into_tiles(
    parts: Sequence[Tensor],
    images: Sequence[ImageGeometry],
    extra: int,
    order_S: Tensor | None,
) -> list[Tensor]:
    """Projections (B, H, S, D) of several calls as one tensor (T, H, Q, D) per run.

    Args:
        parts: queries, or keys, of every call in order.
        images: what was encoded.
        extra: tokens of a tile that are no patches (CLS).
        order_S: where each token, in tile order, stands among all tokens; None: where it is.

    Raises:
        UnsupportedError: the calls do not hold as many tokens as the images have.
    """
    runs = [
        (sum(image.num_tiles for image in run), run[0].tile_patches + extra)
        for run in runs_of(images)
    ]
    if len(runs) == 1 and order_S is None and all(part.shape[2] == runs[0][1] for part in parts):
        whole = parts[0] if len(parts) == 1 else torch.cat(list(parts))
        _require(whole.shape[0], runs[0][0], "tiles")
        return [whole]
    line_HSD = torch.cat([part.transpose(0, 1).flatten(1, 2) for part in parts], dim=1)
    if order_S is not None and int(order_S.max()) < line_HSD.shape[1]:
        line_HSD = line_HSD[:, order_S]  # which may leave out padding
    _require(line_HSD.shape[1], sum(tiles * size for tiles, size in runs), "tokens")
    pieces = torch.split(line_HSD, [tiles * size for tiles, size in runs], dim=1)
    return [
        piece.reshape(piece.shape[0], tiles, size, piece.shape[2]).transpose(0, 1)
        for piece, (tiles, size) in zip(pieces, runs, strict=True)
    ]


def _require(found: int, expected: int, what: str) -> None:
    if found != expected:
        raise UnsupportedError(
            f"the vision encoder attended over {found} {what}, but its images have {expected}; "
            "this version of transformers encodes this family in another way: run "
            "`vflowopt-search doctor MODEL`"
        )
