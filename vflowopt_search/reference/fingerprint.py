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


def processor_sha256(processor: Any) -> str:
    """Fingerprint of image processing, tokenizer and chat template."""
    tokenizer = getattr(processor.tokenizer, "backend_tokenizer", None)
    parts = [
        json.dumps(processor.image_processor.to_dict(), sort_keys=True, default=str),
        _lasting(tokenizer.to_str()) if tokenizer is not None else repr(processor.tokenizer),
        str(getattr(processor, "chat_template", None)),
        json.dumps(_own_settings(processor), sort_keys=True),
    ]
    if (video := getattr(processor, "video_processor", None)) is not None:
        parts.append(json.dumps(video.to_dict(), sort_keys=True, default=str))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _own_settings(processor: Any) -> dict[str, Any]:
    """What a processor itself was told, such as how many tokens an image takes."""
    plain = (bool, int, float, str)
    return {name: value for name, value in vars(processor).items() if isinstance(value, plain)}


def _lasting(tokenizer: str) -> str:
    """A tokenizer's file without what calls leave behind: how the last batch was padded and cut."""
    content = json.loads(tokenizer)
    return json.dumps({k: v for k, v in content.items() if k not in ("padding", "truncation")})


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
