"""What a cached result depends on, as short strings: the model's weights, what it was fed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

SAMPLED = 4096


def weights_sha256(model: nn.Module) -> str:
    """Fingerprint of all weights: names, shapes, sums and up to 4096 values of each tensor.

    A single changed weight changes its tensor's sum; reading every byte of a large model from a
    GPU would take longer than what the cache saves.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().flatten()
        step = max(1, flat.numel() // SAMPLED)
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(_bytes(flat[::step].float()))
        digest.update(_bytes(flat.double().sum()[None]))
    return digest.hexdigest()


def inputs_sha256(inputs: Mapping[str, Any]) -> str:
    """Fingerprint of what a processor made of a batch; a changed processor changes it."""
    digest = hashlib.sha256()
    for name, value in sorted(inputs.items()):
        digest.update(name.encode())
        if isinstance(value, Tensor):
            digest.update(f"{tuple(value.shape)} {value.dtype}".encode())
            digest.update(_bytes(value.float()))
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()


def generation_sha256(model: Any) -> str:
    """Fingerprint of how a model ends and chooses its answers, which may change after loading."""
    config: str = model.generation_config.to_json_string(use_diff=False)
    return hashlib.sha256(config.encode()).hexdigest()


def key_digest(key: Mapping[str, str]) -> str:
    """Name of a folder for what depends on these."""
    return hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()[:24]


def _bytes(values: Tensor) -> bytes:
    data: bytes = values.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return data
