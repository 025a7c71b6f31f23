"""The unpruned model on the calibration set: run once, kept on disk, checked before it is used.

Shape suffixes: S = samples, L = decoder layers, D = hidden width, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor
from transformers import BatchFeature

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
    assembled,
    encoded_batches,
    prepare,
    with_features,
)
from vflowopt_search.reference.fingerprint import (
    inputs_sha256,
    key_digest,
    processor_sha256,
    weights_sha256,
)
from vflowopt_search.reference.halving import Room, in_halves
from vflowopt_search.reference.prepared import (
    PreparedSample,
    PreparedSet,
    Visuals,
)
from vflowopt_search.reference.readout import read_out
from vflowopt_search.reference.shelf import GB, CacheFolder
from vflowopt_search.strategy import PixelScale

FORMAT = "vflowopt-reference/3"
ENCODE_BATCH = 16


@dataclass(frozen=True, eq=False)
class Reference:
    """What the unpruned model gave for each calibration sample.

    Attributes:
        prepared: the samples, encoded.
        readout: hidden_SLD of every decoder layer and logits_SV.
        from_cache: whether it was read from disk instead of computed.
        key: all that it depends on (weights, samples, processor, dtype, versions), as strings.
    """

    prepared: PreparedSet
    readout: Readout
    from_cache: bool
    key: Mapping[str, str]

    def rows(
        self,
        indices: Sequence[int],
        device: torch.device,
        *,
        layers: bool = True,
        logits: bool = True,
    ) -> Readout:
        """The readout of some samples, on a device: only the last of the layers, or no logits."""
        chosen, first = torch.tensor(list(indices)), 0 if layers else -1
        hidden_BLD = self.readout.hidden_BLD[:, first:][chosen].to(device)
        logits_BV = self.readout.logits_BV[chosen].to(device) if logits else None
        if logits_BV is None:
            logits_BV = hidden_BLD.new_zeros(len(hidden_BLD), 0)
        return Readout(hidden_BLD=hidden_BLD, logits_BV=logits_BV)


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
        progress: called with (samples done, samples in total) as it is computed, first with none
            done; an encoded one is half done.

    Raises:
        CacheError: the cache folder cannot be written, or may not hold as much.
        ModelError: a single sample does not fit in memory.
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
    prepared.samples = []
    for number, sample in enumerate(reference.prepared.samples):
        first = prepared.first_alike[number]
        if first == number:
            visuals = {kind: left[kind].into(v) for kind, v in sample.visuals.items()}
        else:
            visuals = {
                kind: mine.with_encoding_of(prepared.samples[first].visuals[kind])
                for kind, mine in sample.visuals.items()
            }
        prepared.samples.append(replace(sample, visuals=visuals))
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
    vision = getattr(adapter.vision_tower, "config", None)
    return {
        "format": FORMAT,
        "config": config_sha256(adapter.config),
        "weights": weights_sha256(adapter.model),
        "calibration": calibration.sha256,
        "processor": processor_sha256(processor),
        "first_inputs": inputs_sha256(first),
        "dtype": str(adapter.backbone.dtype),
        "attention": str(adapter.backbone.config._attn_implementation),
        "vision_attention": str(getattr(vision, "_attn_implementation", None)),
        "device": adapter.backbone.device.type,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }


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

    encoded(0, len(calibration))
    prepared = prepare(
        adapter,
        processor,
        calibration.samples,
        pixels,
        batch_size=ENCODE_BATCH,
        progress=encoded,
    )

    def last_token(chunk: Sequence[int]) -> tuple[Tensor, Tensor]:
        readout = read_out(adapter, prepared.inputs(chunk), layers=True, logits=True)
        return readout.hidden_BLD.cpu(), readout.logits_BV.cpu()

    total, done = len(prepared), 0
    hidden, logits = [], []
    for chunk, (hidden_BLD, logits_BV) in in_halves(
        range(total), prepared.batch_size(), last_token, Room(), number=int
    ):
        hidden.append(hidden_BLD)
        logits.append(logits_BV)
        done += len(chunk)
        if progress is not None:
            progress((total + done) // 2, total)
    readout = Readout(hidden_BLD=torch.cat(hidden), logits_BV=torch.cat(logits))
    return Reference(prepared, readout, from_cache=False, key=key)


def _to_tensors(reference: Reference) -> dict[str, Tensor]:
    """What goes to disk, of the same images once; token ids and geometry are made again."""
    tensors = {
        "hidden_SLD": reference.readout.hidden_BLD,
        "logits_SV": reference.readout.logits_BV,
    }
    prepared = reference.prepared
    firsts = [prepared.samples[number] for number in sorted(set(prepared.first_alike))]
    for kind in KINDS:
        visuals = [sample.visuals[kind] for sample in firsts if kind in sample.visuals]
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

    def fetched(inputs: BatchFeature) -> list[PreparedSample]:
        return with_features(adapter, inputs, lambda kind, images: left[kind].next(images))

    try:
        prepared = assembled(adapter, processor, calibration.samples, fetched, ENCODE_BATCH)
    except ValueError:
        return None
    return None if any(len(each.features) for each in left.values()) else prepared
