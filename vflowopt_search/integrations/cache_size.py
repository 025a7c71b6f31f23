"""What a KV cache takes, read from the cache itself.

Shape suffixes: B = rows, H = heads, K = tokens held, D = features.
"""

from __future__ import annotations

from typing import Any

from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


def allocated_bytes(cache: Any) -> int | None:
    """Bytes of all keys and values, rows and padding included; None where layers hold others."""
    layers = _plain_layers(cache)
    if layers is None:
        return None
    tensors = [tensor for layer in layers for tensor in (layer.keys, layer.values)]
    return sum(int(tensor.numel() * tensor.element_size()) for tensor in tensors)


def bytes_per_token(cache: Any) -> list[int] | None:
    """Bytes of one token of one row in each layer; None where layers do not hold every token."""
    layers = _plain_layers(cache)
    if layers is None:
        return None
    return [_of_token(layer.keys) + _of_token(layer.values) for layer in layers]


def _of_token(values_BHKD: Any) -> int:
    _, heads, _, width = values_BHKD.shape
    return int(heads * width * values_BHKD.element_size())


def _plain_layers(cache: Any) -> list[Any] | None:
    """The layers, if each holds the keys and values of all its tokens: no window, no state."""
    if not isinstance(cache, DynamicCache):
        return None
    layers = list(cache.layers)
    return layers if all(type(layer) is DynamicLayer for layer in layers) else None
