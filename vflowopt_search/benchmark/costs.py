"""What can be counted rather than timed: floating-point operations and bytes of the cache."""

from __future__ import annotations

from typing import Any

import torch

from vflowopt_search.adapters.base import Adapter
from vflowopt_search.budget import ModelShape, prefill_flops


def decoder_shape(adapter: Adapter) -> ModelShape | None:
    """Sizes of the decoder, None where its layers are not what `budget` counts.

    That is decided on the weights themselves: experts, layers unlike each other and packed
    weights are not counted.
    """
    config: Any = adapter.backbone.config
    heads = getattr(config, "num_attention_heads", None)
    inner = getattr(config, "intermediate_size", None)
    if not isinstance(heads, int) or not isinstance(inner, int):
        return None
    shape = ModelShape(
        decoder_layers=len(adapter.decoder_layers),
        hidden_size=config.hidden_size,
        num_heads=heads,
        num_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        intermediate_size=inner,
        vocab_size=config.vocab_size,
    )
    counted = (prefill_flops(shape, [0] * shape.decoder_layers, 1) - _attention_and_head(shape)) / 2
    held = sum(
        p.numel() for layer in adapter.decoder_layers for p in layer.parameters() if _is_matrix(p)
    )
    return shape if counted == held else None


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
