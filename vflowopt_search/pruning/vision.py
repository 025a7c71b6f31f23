"""Record what importance needs of the vision encoder while the model encodes its images.

Shape suffixes: T = tiles, P = patches of a tile, C = channels, H, W = pixels of a tile.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from vflowopt_search.importance.signals import ImageGeometry, ProjectedAttention, VisualSignals
from vflowopt_search.ops.entropy import gray_patches, patch_entropy
from vflowopt_search.pruning.anatomy import Anatomy
from vflowopt_search.pruning.probe import attention_probe
from vflowopt_search.strategy import PixelScale


@dataclass
class VisionRecorder:
    """Watches one model's vision encoder; `call` holds what was seen and not used yet.

    Attributes:
        anatomy: the model's parts.
        layer: vision encoder layer (0-based) whose attention is needed, None for no attention.
        pixels: how the processor normalised the pixels, None where entropy is not needed.
        call: signals of the newest `get_image_features` call, until a prompt uses them up.
    """

    anatomy: Anatomy
    layer: int | None
    pixels: PixelScale | None
    call: VisualSignals | None = None
    _tiles: list[Tensor] = field(default_factory=list)
    _attention: list[ProjectedAttention] = field(default_factory=list)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Watch inside the `with` block; afterwards the model is as before."""
        with ExitStack() as stack:
            stack.enter_context(_wrapped(self.anatomy, self._encode))
            if self.pixels is not None:
                hook = self.anatomy.vision_tower.register_forward_pre_hook(
                    self._see_tiles, with_kwargs=True
                )
                stack.callback(hook.remove)
            if self.layer is not None:
                attention = self.anatomy.vision_attentions[self.layer]
                stack.enter_context(attention_probe(attention, self._see_attention))
            yield

    def _encode(self, encode: Callable[..., Any], call: Mapping[str, Any]) -> Any:
        """Run one `get_image_features` call and file what was seen meanwhile."""
        self._tiles.clear()
        self._attention.clear()
        features = encode()
        self.call = self._signals(self.anatomy.images(call))
        return features

    def _signals(self, images: tuple[ImageGeometry, ...]) -> VisualSignals:
        entropy_TP = None
        if self.pixels is not None:
            entropy_TP = tile_entropy(self._tiles[0], self.pixels, self.anatomy.patch_size)
        attention = self._attention[0] if self.layer is not None else None
        self._tiles.clear()
        self._attention.clear()
        return VisualSignals(
            images=images, attention=attention, entropy_TP=entropy_TP, text_attention=None
        )

    def _see_tiles(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._tiles.append(args[0] if args else kwargs["pixel_values"])

    def _see_attention(self, query: Tensor, key: Tensor, scale: float) -> None:
        prefix = self.anatomy.num_prefix_tokens
        self._attention.append(ProjectedAttention(query.detach(), key.detach(), scale, prefix))


def tile_entropy(tiles_TCHW: Tensor, pixels: PixelScale, patch_size: int) -> Tensor:
    """Entropy of the raw pixels of every patch, in bits, shape (T, P) (VFlowOpt section 1.1)."""
    gray_TPX = gray_patches(tiles_TCHW, pixels.mean, pixels.std, patch_size)
    return patch_entropy(gray_TPX.flatten(0, 1)).view(gray_TPX.shape[:2])


@contextmanager
def _wrapped(
    anatomy: Anatomy, around: Callable[[Callable[..., Any], Mapping[str, Any]], Any]
) -> Iterator[None]:
    """Put `around` around the `get_image_features` of this one model, not of its class.

    `generate` encodes the images before any forward hook can see pixels or image sizes, and reads
    the function's signature, which `functools.wraps` keeps.
    """
    base = anatomy.base
    outer = vars(base).get("get_image_features")
    original = base.get_image_features
    signature = inspect.signature(original)

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        call = signature.bind_partial(*args, **kwargs).arguments
        return around(lambda: original(*args, **kwargs), call)

    base.get_image_features = wrapper
    try:
        yield
    finally:
        del base.get_image_features
        if outer is not None:
            base.get_image_features = outer
