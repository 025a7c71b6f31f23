"""The unpruned model on the calibration set: run once, kept on disk, checked before it is used.

Shape suffixes: S = samples, L = decoder layers, D = hidden width, V = vocabulary.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from vflowopt_search.adapters.base import Adapter
from vflowopt_search.adapters.registry import config_sha256
from vflowopt_search.calibration.samples import CalibrationSet
from vflowopt_search.divergence import Readout
from vflowopt_search.errors import CacheError
from vflowopt_search.importance.signals import ImageGeometry
from vflowopt_search.pruning.vision import KINDS
from vflowopt_search.reference.cache import read_tensors, write_tensors
from vflowopt_search.reference.encoder import (
    Encoded,
    Progress,
    encoded_batches,
    first_with_same_images,
    prepare,
    with_features,
)
from vflowopt_search.reference.fingerprint import inputs_sha256, key_digest, weights_sha256
from vflowopt_search.reference.prepared import (
    PreparedSample,
    PreparedSet,
    Visuals,
    batches,
    pad_token_of,
)
from vflowopt_search.reference.readout import read_out
from vflowopt_search.reference.shelf import GB, CacheFolder
from vflowopt_search.strategy import PixelScale

FORMAT = "vflowopt-reference/2"
ENCODE_BATCH = 16


@dataclass(frozen=True, eq=False)
class Reference:
    """What the unpruned model gave for each calibration sample.

    Attributes:
        prepared: the samples, encoded.
        readout: hidden_SLD of every decoder layer and logits_SV, on the CPU.
        from_cache: whether it was read from disk instead of computed.
        key: all that it depends on (weights, samples, processor, dtype, versions), as strings.
    """

    prepared: PreparedSet
    readout: Readout
    from_cache: bool
    key: Mapping[str, str]

    def rows(self, indices: Sequence[int], device: torch.device) -> Readout:
        """The readout of some samples."""
        chosen = torch.tensor(list(indices))
        return Readout(
            hidden_BLD=self.readout.hidden_BLD[chosen].to(device),
            logits_BV=self.readout.logits_BV[chosen].to(device),
        )


def build_reference(
    adapter: Adapter,
    processor: Any,
    calibration: CalibrationSet,
    pixels: PixelScale | None,
    *,
    cache: CacheFolder | None,
    progress: Progress | None = None,
) -> Reference:
    """Read the reference from the cache folder, or compute it and leave it there.

    Args:
        adapter: the model.
        processor: its processor.
        calibration: the samples.
        pixels: how the processor normalises pixels, None if that cannot be undone.
        cache: where references are stored; None keeps nothing on disk.
        progress: called with (samples done, samples in total); an encoded one is half done.

    Raises:
        CacheError: the cache folder cannot be written, or may not hold as much.
    """
    key = reference_key(adapter, processor, calibration)
    if cache is None:
        return _compute(adapter, processor, calibration, pixels, key, progress)
    path = cache.root / "references" / key_digest(key) / "reference.safetensors"
    cache.needed.add(path)
    stored = read_tensors(path, key)
    if stored is not None:
        prepared = _prepared_from(adapter, processor, calibration, stored)
        if prepared is not None:
            readout = Readout(hidden_BLD=stored["hidden_SLD"], logits_BV=stored["logits_SV"])
            if progress is not None:
                progress(len(prepared), len(prepared))
            return Reference(prepared, readout, from_cache=True, key=key)
    reference = _compute(adapter, processor, calibration, pixels, key, progress)
    tensors = _to_tensors(reference)
    _require_room(tensors, cache.limit_bytes)
    write_tensors(path, tensors, key)
    cache.added(path)
    try:
        return _mapped(reference, load_file(path))
    except FileNotFoundError:  # another process made room for its own
        return reference


def _mapped(reference: Reference, stored: Mapping[str, Tensor]) -> Reference:
    """The same, its tensors mapped from the file: what was computed can leave memory."""
    left = {kind: _Stored(stored, kind) for kind in KINDS}
    prepared = copy(reference.prepared)
    prepared.samples = [
        replace(sample, visuals={k: left[k].into(v) for k, v in sample.visuals.items()})
        for sample in prepared.samples
    ]
    readout = Readout(hidden_BLD=stored["hidden_SLD"], logits_BV=stored["logits_SV"])
    return replace(reference, prepared=prepared, readout=readout)


def _require_room(tensors: Mapping[str, Tensor], limit_bytes: int) -> None:
    size = sum(tensor.nbytes for tensor in tensors.values())
    if size > limit_bytes:
        raise CacheError(
            f"features and hidden states of these samples take {size / GB:.1f} GB, but the cache "
            f"may hold {limit_bytes / GB:g}; allow more with --cache-gb, or ask for fewer samples"
        )


def reference_key(adapter: Adapter, processor: Any, calibration: CalibrationSet) -> dict[str, str]:
    """All that the reference depends on, as strings."""
    first = next(encoded_batches(adapter, processor, calibration.samples[:1], 1))
    return {
        "format": FORMAT,
        "config": config_sha256(adapter.config),
        "weights": weights_sha256(adapter.model),
        "calibration": calibration.sha256,
        "processor": processor_sha256(processor),
        "first_inputs": inputs_sha256(first),
        "dtype": str(adapter.backbone.dtype),
        "attention": str(adapter.backbone.config._attn_implementation),
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }


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


def _compute(
    adapter: Adapter,
    processor: Any,
    calibration: CalibrationSet,
    pixels: PixelScale | None,
    key: Mapping[str, str],
    progress: Progress | None,
) -> Reference:
    """Encode every sample, then run the unpruned model on all of them, batch by batch."""

    def encoded(done: int, total: int) -> None:
        if progress is not None:
            progress(done // 2, total)

    prepared = prepare(
        adapter,
        processor,
        calibration.samples,
        pixels,
        batch_size=ENCODE_BATCH,
        progress=encoded,
    )
    total = len(prepared)
    hidden, logits = [], []
    for chunk in batches(len(prepared), prepared.batch_size()):
        readout = read_out(adapter, prepared.inputs(chunk), layers=True, logits=True)
        hidden.append(readout.hidden_BLD.cpu())
        logits.append(readout.logits_BV.cpu())
        if progress is not None:
            progress((total + chunk.stop) // 2, total)
    readout = Readout(hidden_BLD=torch.cat(hidden), logits_BV=torch.cat(logits))
    return Reference(prepared, readout, from_cache=False, key=key)


def _to_tensors(reference: Reference) -> dict[str, Tensor]:
    """What goes to disk; token ids and geometry are made again from the samples."""
    tensors = {
        "hidden_SLD": reference.readout.hidden_BLD,
        "logits_SV": reference.readout.logits_BV,
    }
    for kind in KINDS:
        samples = reference.prepared.samples
        visuals = [sample.visuals[kind] for sample in samples if kind in sample.visuals]
        if not visuals:
            continue
        tensors[f"features_{kind}"] = torch.cat([one for each in visuals for one in each.features])
        if all(each.entropy is not None for each in visuals):
            entropy = [one.flatten() for each in visuals for one in each.entropy or ()]
            tensors[f"entropy_{kind}"] = torch.cat(entropy)
    return tensors


class _Stored:
    """Hands out the features and entropy of one kind in the order in which they were stored."""

    def __init__(self, stored: Mapping[str, Tensor], kind: str) -> None:
        self.features = stored.get(f"features_{kind}", torch.zeros(0))
        self.entropy = stored.get(f"entropy_{kind}")

    def next(self, images: Sequence[ImageGeometry]) -> Encoded:
        """Those of the next images; ValueError where no more are left."""
        sizes = [len(image.grid) for image in images]
        patches = [image.num_tiles * image.tile_patches for image in images]
        features, self.features = _take(self.features, sizes)
        if self.entropy is None:
            return tuple(features), None
        parts, self.entropy = _take(self.entropy, patches)
        entropy = [p.view(i.num_tiles, -1) for p, i in zip(parts, images, strict=True)]
        return tuple(features), tuple(entropy)

    def into(self, visuals: Visuals) -> Visuals:
        """The next images with what was stored of them."""
        features, entropy = self.next(visuals.images)
        return replace(visuals, features=features, entropy=entropy)


def _take(line: Tensor, sizes: Sequence[int]) -> tuple[list[Tensor], Tensor]:
    """The next pieces of a line, and what is left of it."""
    if sum(sizes) > len(line):
        raise ValueError(f"{len(line)} entries are left of the {sum(sizes)} that should be")
    *pieces, rest = torch.split(line, [*sizes, len(line) - sum(sizes)])
    return pieces, rest


def _prepared_from(
    adapter: Adapter, processor: Any, calibration: CalibrationSet, stored: Mapping[str, Tensor]
) -> PreparedSet | None:
    """The samples with features and entropy from disk; None if they do not add up."""
    left = {kind: _Stored(stored, kind) for kind in KINDS}
    samples: list[PreparedSample] = []
    try:
        for inputs in encoded_batches(adapter, processor, calibration.samples, ENCODE_BATCH):
            samples += with_features(adapter, inputs, lambda kind, images: left[kind].next(images))
    except ValueError:
        return None
    if any(len(each.features) for each in left.values()):
        return None
    return PreparedSet(
        adapter,
        samples,
        pad_token_id=pad_token_of(processor),
        first_alike=first_with_same_images(calibration.samples),
    )
