"""Square tiles whose patches are pooled: one visual token for each block of patches.

Shape suffixes: T = tiles, P = patches of a tile, N = visual tokens of one image, C = colour
channels, H, W = pixels of a tile.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from vflowopt_search.adapters.base import raster
from vflowopt_search.errors import UnsupportedError
from vflowopt_search.importance.signals import ImageGeometry


def pooled_tile(side: int, block: int, device: torch.device | None = None) -> ImageGeometry:
    """An image that is one tile of side x side patches, a token for each block x block of them.

    Pixel shuffle and average pooling both give tokens in raster order; patches beyond the last
    whole block belong to no token.
    """

    def pack(map_TP: Tensor) -> Tensor:
        return avg_pool2d(map_TP.reshape(1, side, side), block).flatten()

    tokens = side // block
    return ImageGeometry(1, side * side, raster(tokens, tokens, view=0, device=device), pack)


def square_side(pixels_TCHW: Tensor, patch_size: int) -> int:
    """Patches along a side of these tiles; UnsupportedError if they are not square."""
    height, width = (length // patch_size for length in pixels_TCHW.shape[-2:])
    if height != width:
        raise UnsupportedError(
            f"tiles of {height} x {width} patches cannot be pooled into a square of tokens; give "
            "square tiles, as this model's own processor makes them"
        )
    return height
