"""What can be counted rather than timed: floating-point operations and bytes of the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vflowopt_search.adapters.base import Adapter
from vflowopt_search.budget import ModelShape, prefill_flops


@dataclass(frozen=True)
class DecoderCost:
    """What a decoder's prefill costs.

    Attributes:
        shape: sizes, of all layers alike.
        windows: of each layer, how many tokens a token looks back to; None is all of them.
    """

    shape: ModelShape
    windows: tuple[int | None, ...]

    def prefill_flops(self, visual_per_layer: Sequence[int], text_tokens: int) -> float:
        """Operations of one prompt's prefill: `budget.prefill_flops`, attention within windows.

        Raises:
            BudgetError: not one count of visual tokens per decoder layer.
        """
        width = self.shape.num_heads * self.shape.head_dim
        beyond = sum(
            4.0 * (n + text_tokens) * max(0, n + text_tokens - window) * width
            for n, window in zip(visual_per_layer, self.windows, strict=True)
            if window is not None
        )
        return prefill_flops(self.shape, visual_per_layer, text_tokens) - beyond


def decoder_cost(adapter: Adapter) -> DecoderCost | None:
    """What the decoder costs; None where its layers are not what `budget` counts."""
    shape = decoder_shape(adapter)
    windows = attention_windows(adapter)
    return None if shape is None or windows is None else DecoderCost(shape, windows)


def decoder_shape(adapter: Adapter) -> ModelShape | None:
    """Sizes of the decoder, None where its layers are not what `budget` counts.

    That is decided on the weights themselves: experts, layers unlike each other and packed
    weights are not counted.
    """
    try:
        shape = _read_shape(adapter)
    except RuntimeError:  # transformers' way to say that a size is not that of all layers
        return None
    if shape is None:
        return None
    counted = (prefill_flops(shape, [0] * shape.decoder_layers, 1) - _attention_and_head(shape)) / 2
    held = sum(
        p.numel() for layer in adapter.decoder_layers for p in layer.parameters() if _is_matrix(p)
    )
    return shape if counted == held else None


def attention_windows(adapter: Adapter) -> tuple[int | None, ...] | None:
    """How many tokens each decoder layer looks back to, None for all of them.

    None altogether where the configuration does not say, or layers do something else.
    """
    config: Any = adapter.backbone.config
    depth = len(adapter.decoder_layers)
    try:
        kinds = getattr(config, "layer_types", None)
        window = getattr(config, "sliding_window", None)
    except RuntimeError:  # as in `decoder_shape`
        return None
    if kinds is None:  # without kinds all layers slide, or none (Mistral)
        slides = window is not None and getattr(config, "use_sliding_window", True)
        return (window if slides else None,) * depth
    known = {"full_attention": None, "sliding_attention": window}
    if len(kinds) != depth or not known.keys() >= set(kinds):
        return None
    return tuple(known[kind] for kind in kinds)


def _read_shape(adapter: Adapter) -> ModelShape | None:
    config: Any = adapter.backbone.config
    heads = getattr(config, "num_attention_heads", None)
    inner = getattr(config, "intermediate_size", None)
    if not isinstance(heads, int) or not isinstance(inner, int):
        return None
    return ModelShape(
        decoder_layers=len(adapter.decoder_layers),
        hidden_size=config.hidden_size,
        num_heads=heads,
        num_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        intermediate_size=inner,
        vocab_size=config.vocab_size,
    )


def _is_matrix(parameter: torch.Tensor) -> bool:
    return parameter.dim() >= 2


def _attention_and_head(shape: ModelShape) -> float:
    """Operations of a prefill of one token that are no product with a layer's weights."""
    attention = 4.0 * shape.num_heads * shape.head_dim * shape.decoder_layers
    return attention + 2.0 * shape.hidden_size * shape.vocab_size


def cache_bytes(cache: Any) -> int:
    """Bytes allocated for keys and values, counted on the cache's tensors."""
    storages = {}
    for layer in getattr(cache, "layers", ()):
        for tensor in (getattr(layer, "keys", None), getattr(layer, "values", None)):
            if isinstance(tensor, torch.Tensor) and tensor.numel():
                storage = tensor.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())
