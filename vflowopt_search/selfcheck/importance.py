"""Whether what is seen of the vision encoder's attention is what it computes.

Shape suffixes: T = tiles of a run, H = heads, Q = tokens of a tile in the encoder, P = patches,
S = all tokens of one call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import eager_attention_forward

from vflowopt_search.adapters.base import Adapter
from vflowopt_search.adapters.feeding import encode_visuals, encoder_inputs
from vflowopt_search.importance.signals import ImageGeometry, runs_of
from vflowopt_search.pruning.probe import eager_of
from vflowopt_search.pruning.tiles import SeenAttention
from vflowopt_search.pruning.vision import attention_by_run
from vflowopt_search.selfcheck.masking import attending


def attention_gap(adapter: Adapter, inputs: Mapping[str, Any], layer: int) -> float | None:
    """Largest difference of received attention from the eager map's, relative to the largest.

    None where there is no image, or where the maps do not come in a form that can be compared.
    """
    call = encoder_inputs(adapter, inputs, "image")
    if not call:
        return None
    module = adapter.vision_attentions[layer]
    watch = _Eager()
    with torch.no_grad(), attending(module, watch):
        encoded = encode_visuals(adapter, call, "image")
        images = adapter.images_of(call, encoded)
        runs = attention_by_run(adapter, watch.seen, images, call)
        expected = _received(adapter, watch.maps, images, call)
    if expected is None:
        return None
    found = [run.received() for run in runs]
    gaps = [(a - b).abs().max() / b.abs().max() for a, b in zip(found, expected, strict=True)]
    return float(torch.stack(gaps).max())


class _Eager:
    """Computes one attention module eagerly and keeps what it saw and what came out."""

    def __init__(self) -> None:
        self.seen: list[SeenAttention] = []
        self.maps: list[Tensor] = []

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any = None,
        **options: Any,
    ) -> Any:
        scale = options.get("scaling")
        scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
        self.seen.append(SeenAttention(query, key, scale))
        eager = eager_of(module) or eager_attention_forward
        output, weight_BHSS = eager(module, query, key, value, attention_mask, **options)
        self.maps.append(weight_BHSS.float().mean(1))
        return output, weight_BHSS


def _received(
    adapter: Adapter,
    maps: Sequence[Tensor],
    images: Sequence[ImageGeometry],
    call: Mapping[str, Any],
) -> list[Tensor] | None:
    """Mean attention that each patch receives in its tile, (T, P) per run, from whole maps."""
    prefix, suffix = adapter.num_prefix_tokens, adapter.num_suffix_tokens
    sizes = [one.tile_patches + prefix + suffix for one in images for _ in range(one.num_tiles)]
    order_S = adapter.patch_order(images, call)
    squares = [square for map_BSS in maps for square in map_BSS]
    if len(squares) != len(sizes) or order_S is not None:
        join: Any = torch.block_diag  # torch annotates it in part only
        squares = _diagonal(join(*squares), sizes, order_S)
    if [len(square) for square in squares] != sizes:
        return None
    left = iter(square.mean(0)[prefix : len(square) - suffix] for square in squares)
    return [
        torch.stack([next(left) for image in run for _ in range(image.num_tiles)])
        for run in runs_of(images)
    ]


def _diagonal(whole_SS: Tensor, sizes: Sequence[int], order_S: Tensor | None) -> list[Tensor]:
    """The blocks of one map over all tiles, in tile order; nothing where they do not add up."""
    if len(whole_SS) != sum(sizes):
        return []
    whole_SS = whole_SS if order_S is None else whole_SS[order_S][:, order_S]
    ends = torch.tensor(list(sizes)).cumsum(0).tolist()
    return [whole_SS[end - n : end, end - n : end] for end, n in zip(ends, sizes, strict=True)]
