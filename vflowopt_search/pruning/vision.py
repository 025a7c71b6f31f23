"""Record what importance needs of the vision encoder while the model encodes images and videos."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from threading import local
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from vflowopt_search.importance.signals import ImageGeometry, ProjectedAttention, VisualSignals
from vflowopt_search.ops.dispatch import patch_entropy
from vflowopt_search.pruning.anatomy import Anatomy
from vflowopt_search.pruning.probe import attention_probe
from vflowopt_search.pruning.tiles import SeenAttention, cut_into_tiles
from vflowopt_search.strategy import PixelScale

SIGNALS = "_vflowopt_signals"
KINDS = {"image": "get_image_features", "video": "get_video_features"}


class _Key:
    """Stands on an encoder's output for the signals that its recorder holds."""


class _Seen(local):
    """What a thread's encodings have shown; each thread has its own."""

    def __init__(self) -> None:
        self.calls: dict[str, VisualSignals] = {}
        self.newest: dict[str, Tensor] = {}
        self.inputs: list[Tensor] = []
        self.attention: list[SeenAttention] = []
        self.inside = False


@dataclass
class VisionRecorder:
    """Watches one model's vision encoder; `calls` holds what was seen and not used yet.

    The encoder's outputs are marked, so that features encoded once can serve several prompts; what
    was seen is held as long as both the output and the recorder live. The newest one is also known
    by its values, for an output may be copied on its way (by accelerate, or prefill in chunks).

    Attributes:
        anatomy: the model's parts.
        layer: vision encoder layer (0-based) whose attention is needed, None for no attention.
        pixels: how the processor normalised the pixels, None where entropy is not needed.
    """

    anatomy: Anatomy
    layer: int | None
    pixels: PixelScale | None
    _held: WeakKeyDictionary[_Key, VisualSignals] = field(default_factory=WeakKeyDictionary)
    _seen: _Seen = field(default_factory=_Seen)

    @property
    def calls(self) -> dict[str, VisualSignals]:
        """Signals of this thread's newest encoding by kind ("image", "video"), not used yet."""
        return self._seen.calls

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Watch inside the `with` block; afterwards the model is as before."""
        with ExitStack() as stack:
            for kind, name in KINDS.items():
                if kind == "image" or self.anatomy.video_token_id is not None:
                    around = functools.partial(self._encode, kind)
                    stack.enter_context(wrapped(self.anatomy.base, name, around))
            if self.pixels is not None:
                hook = self.anatomy.vision_tower.register_forward_pre_hook(
                    self._see_input, with_kwargs=True
                )
                stack.callback(hook.remove)
            if self.layer is not None:
                attention = self.anatomy.vision_attentions[self.layer]
                stack.enter_context(attention_probe(attention, self._see_attention))
            yield

    def _encode(self, kind: str, encode: Callable[..., Any], call: Mapping[str, Any]) -> Any:
        """Run one encoding and file what was seen meanwhile."""
        if self._seen.inside:  # some models encode videos by their own get_image_features
            return encode()
        self._clear()
        self._seen.inside = True
        try:
            features = encode()
        finally:
            self._seen.inside = False
        if kind == "image":
            images = self.anatomy.images_of(call, features)
        else:
            images = self.anatomy.videos(call)
        signals = self._signals(images, call)
        self._clear()
        self.file(kind, signals)
        if not isinstance(features, tuple | Tensor):
            key = _Key()
            self._held[key] = signals
            setattr(features, SIGNALS, key)
            self._seen.newest[kind] = rows_of(features)
        return features

    def signals_of(self, output: Any, kind: str) -> VisualSignals | None:
        """What this recorder saw while it was encoding `output`; None if it did not."""
        key = getattr(output, SIGNALS, None)
        if key is not None and key in self._held:
            return self._held[key]
        newest = self._seen.newest.get(kind)
        if newest is None:
            return None
        given = rows_of(output)[: len(newest)]  # beams repeat them
        same = given.shape == newest.shape and torch.equal(given, newest)
        return self.calls.get(self._filed_as(kind)) if same else None

    def file(self, kind: str, signals: VisualSignals) -> None:
        """Keep signals until a prompt uses them; some models spell videos as images."""
        self.calls[self._filed_as(kind)] = signals

    def forget(self) -> None:
        """Drop what no prompt has used."""
        self.calls.clear()
        self._seen.newest.clear()

    def drop(self, kind: str) -> None:
        """Keep no signals of this kind."""
        self.calls.pop(self._filed_as(kind), None)

    def _filed_as(self, kind: str) -> str:
        same = self.anatomy.video_token_id == self.anatomy.image_token_id
        return "image" if same else kind

    def _clear(self) -> None:
        self._seen.inputs.clear()
        self._seen.attention.clear()

    def _signals(self, images: tuple[ImageGeometry, ...], call: Mapping[str, Any]) -> VisualSignals:
        entropy: tuple[Tensor, ...] | None = None
        if self.pixels is not None:
            runs = self.anatomy.gray_tiles(self._seen.inputs, images, self.pixels)
            entropy = tuple(entropy_of(gray_TPX) for gray_TPX in runs)
        attention: tuple[ProjectedAttention, ...] | None = None
        if self.layer is not None:
            attention = attention_by_run(self.anatomy, self._seen.attention, images, call)
        return VisualSignals(images=images, attention=attention, entropy=entropy)

    def _see_input(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._seen.inputs.append(args[0] if args else kwargs.get("pixel_values", _first(kwargs)))

    def _see_attention(self, query: Tensor, key: Tensor, scale: float) -> None:
        self._seen.attention.append(SeenAttention(query.detach(), key.detach(), scale))


def rows_of(output: Any) -> Tensor:
    """The features of an encoder's output as one matrix, a row for each."""
    value = output.pooler_output if output.pooler_output is not None else output.last_hidden_state
    parts = [value] if isinstance(value, Tensor) else list(value)
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])


def _first(kwargs: dict[str, Any]) -> Any:
    return next(iter(kwargs.values()))


def attention_by_run(
    anatomy: Anatomy,
    seen: Sequence[SeenAttention],
    images: Sequence[ImageGeometry],
    call: Mapping[str, Any],
) -> tuple[ProjectedAttention, ...]:
    """What a probe saw during one encoding, as one attention per run of the images."""
    prefix, suffix = anatomy.num_prefix_tokens, anatomy.num_suffix_tokens
    order_S = anatomy.patch_order(images, call)
    query = cut_into_tiles([one.query for one in seen], images, prefix + suffix, order_S)
    key = cut_into_tiles([one.key for one in seen], images, prefix + suffix, order_S)
    return tuple(
        ProjectedAttention(query_THQD, key_THQD, seen[0].scale, prefix, suffix)
        for query_THQD, key_THQD in zip(query, key, strict=True)
    )


def entropy_of(gray_TPX: Tensor) -> Tensor:
    """Entropy of the pixels of every patch, in bits, shape (T, P) (VFlowOpt section 1.1)."""
    return patch_entropy(gray_TPX.flatten(0, 1)).view(gray_TPX.shape[:2])


@contextmanager
def wrapped(
    base: Any, name: str, around: Callable[[Callable[..., Any], Mapping[str, Any]], Any]
) -> Iterator[None]:
    """Put `around` around a method of this one model, not of its class.

    `generate` encodes the images before any forward hook can see pixels or image sizes, and reads
    the function's signature, which `functools.wraps` keeps.
    """
    outer = vars(base).get(name)
    original = getattr(base, name)
    signature = inspect.signature(original)

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind_partial(*args, **kwargs).arguments
        call = bound | bound.get("kwargs", {})
        return around(lambda: original(*args, **kwargs), call)

    setattr(base, name, wrapper)
    try:
        yield
    finally:
        delattr(base, name)
        if outer is not None:
            setattr(base, name, outer)
