"""What is measured: each op at the sizes of LLaVA-OneVision-7B, and received attention at 16,384.

Ten tiles of 27 x 27 patches of 14 x 14 pixels; a vision encoder with 16 heads of 72 features; a
decoder with 3584 features, 28 query heads and 4 key heads of 128 features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vflowopt_search.ops.select import Tokens


@dataclass(frozen=True, eq=False)
class Sizes:
    """How much of everything; the defaults are those of LLaVA-OneVision-7B."""

    tiles: int = 10
    side: int = 27
    pixels: int = 14 * 14
    vision_heads: int = 16
    vision_width: int = 72
    long: int = 16384
    features: int = 3584
    text: int = 50
    heads: int = 28
    key_heads: int = 4
    width: int = 128

    @property
    def tile(self) -> int:
        """Tokens of a tile."""
        return self.side**2

    @property
    def tokens(self) -> int:
        """Visual tokens of an image."""
        return self.tiles * self.tile


SMALL = Sizes(2, 9, 49, 2, 24, 300, 48, 5, 4, 2, 16)  # for trying the program on a CPU


@dataclass(frozen=True, eq=False)
class Case:
    """One op at one size.

    Attributes:
        op: name of the op.
        sizes: the size in words.
        arguments: what the op is called with.
        amount: bytes that must be read and written, or operations of its products.
        bound: "copy" (of as many bytes) or "attention" (fused, of the same shape).
        map_bytes: of the attention map of all heads in fp32, which the eager way holds at least.
    """

    op: str
    sizes: str
    arguments: tuple[Any, ...]
    amount: float
    bound: str
    map_bytes: int | None = None


def cases(sizes: Sizes, device: torch.device) -> list[Callable[[], Case]]:
    """All cases, each made when it is wanted, so that one at a time takes memory."""
    return [
        partial(_entropy, sizes, device),
        partial(_received, sizes, device, sizes.tiles, sizes.tile, False),
        partial(_received, sizes, device, sizes.tiles, sizes.tile, True),
        partial(_received, sizes, device, 1, sizes.long, False),
        partial(_text, sizes, device),
        partial(_merge, sizes, device, 3),
        partial(_merge, sizes, device, 24),
        partial(_select, sizes, device),
    ]


def _random(device: torch.device, *shape: int) -> Tensor:
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    return torch.randn(*shape, dtype=dtype, device=device)


def _entropy(sizes: Sizes, device: torch.device) -> Case:
    shape = (sizes.tokens, sizes.pixels)
    gray_NK = torch.randint(256, shape, dtype=torch.uint8, device=device)
    words = f"{shape[0]} patches of {shape[1]} pixels"
    return Case("patch_entropy", words, (gray_NK,), gray_NK.numel() + 4 * shape[0], "copy")


def _received(sizes: Sizes, device: torch.device, batch: int, length: int, weighted: bool) -> Case:
    heads, width = sizes.vision_heads, sizes.vision_width
    query_BHQD, key_BHND = _random(device, 2, batch, heads, length, width)
    arguments: tuple[Any, ...] = (query_BHQD, key_BHND, width**-0.5)
    words = f"{batch} x {length} tokens, {heads} heads of {width}"
    if weighted:
        arguments += (torch.rand(batch, length, device=device) > 0.9,)
        words += ", a tenth of the queries"
    operations = 4.0 * batch * heads * length**2 * width
    map_bytes = 4 * batch * heads * length**2
    return Case("attention_received", words, arguments, operations, "attention", map_bytes)


def _text(sizes: Sizes, device: torch.device) -> Case:
    length, width = sizes.tokens + sizes.text, sizes.width
    query_BHD = _random(device, 1, sizes.heads, width)
    key_BHND = _random(device, 1, sizes.key_heads, length, width)
    words = f"{length} tokens, {sizes.heads} heads on {sizes.key_heads} of {width}"
    amount = key_BHND.nbytes + 4 * length
    arguments = (query_BHD, key_BHND, width**-0.5)
    return Case("text_attention", words, arguments, amount, "copy", 4 * sizes.heads * length**2)


def _merge(sizes: Sizes, device: torch.device, cell: int) -> Case:
    place_P = torch.arange(sizes.side, device=device) // cell
    across = (sizes.side - 1) // cell + 1
    cell_P = (place_P[:, None] * across + place_P).flatten()
    tile_T1 = torch.arange(sizes.tiles, device=device)[:, None] * across**2
    num_groups = sizes.tiles * across**2
    features_ND = _random(device, sizes.tokens, sizes.features)
    weight_N = torch.rand(sizes.tokens, device=device)
    words = f"{sizes.tokens} x {sizes.features}, {num_groups} cells of {cell} x {cell}"
    amount = features_ND.nbytes + features_ND[0].nbytes * num_groups + 12 * sizes.tokens
    arguments = (features_ND, weight_N, (tile_T1 + cell_P).flatten(), num_groups)
    return Case("merge_tokens", words, arguments, amount, "copy")


def _select(sizes: Sizes, device: torch.device) -> Case:
    length = sizes.tokens + sizes.text
    num_kept = length // 4
    index_BK = torch.randperm(length, device=device)[:num_kept].sort().values[None]
    place_ABN = torch.arange(length, device=device).view(1, 1, -1)
    hidden_BND = _random(device, 1, length, sizes.features)
    whole = Tokens(hidden_BND, place_ABN, torch.ones_like(place_ABN[0], dtype=torch.bool))
    words = f"{num_kept} of {length} x {sizes.features}"
    # Indices, positions and masks: 8 + 16 + 2 bytes a token.
    amount = 2 * hidden_BND[:, 0].nbytes * num_kept + 26 * num_kept
    return Case("select_tokens", words, (whole, index_BK), amount, "copy")
