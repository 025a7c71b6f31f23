"""Video-LLaVA: a tower for images and one for videos, whose frames keep their CLS token.

Shape suffixes: T = images or frames, P = patches of a tile and its CLS token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vflowopt_search.adapters.base import ALL_SCORES, Adapter, Family, Parts, member, raster
from vflowopt_search.adapters.llava import (
    gray_with_cls,
    one_tensor,
    pixels_of,
    refuse_other_selection,
    tiles_with_cls,
)
from vflowopt_search.errors import UnsupportedError
from vflowopt_search.importance.signals import ImageGeometry
from vflowopt_search.strategy import PixelScale


class VideoLlavaAdapter(Adapter):
    """`video_llava`: square images and videos of square frames."""

    family = Family(
        model_type="video_llava",
        inputs=("image", "several images", "video"),
        positions=("original", "packed"),
        scores=ALL_SCORES,
        limits="the CLS token of an image or frame counts among its patches when it is scored",
    )

    @property
    def num_prefix_tokens(self) -> int:
        """0: the features of a video hold the CLS token, so it is a patch to us."""
        return 0

    @property
    def video_token_id(self) -> int:
        """Token id of the placeholder of one visual token of a video."""
        return int(self.config.video_token_id)

    def parts(self) -> Parts:
        """Both towers as one: an image runs through the first, a video through the second."""
        base = member(self.model, "model")
        towers = member(base, "image_tower"), member(base, "video_tower")
        layers = zip(*(_layers(tower) for tower in towers), strict=True)
        attentions = [_TwinAttention([layer.self_attn for layer in twins]) for twins in layers]
        return Parts(base, member(base, "language_model"), _TwinTower(towers), attentions)

    def check(self) -> None:
        """Raise UnsupportedError for towers without a CLS token, which this family counts on."""
        kind = self.config.vision_config.model_type
        if kind != "clip_vision_model":
            raise UnsupportedError(
                f"this video_llava model has {kind} towers; only CLIP's, whose tiles begin with "
                "a CLS token, are supported"
            )

    def images(self, call: Mapping[str, Any]) -> tuple[ImageGeometry, ...]:
        """One tile per image; its CLS token is in the features or not, as configured."""
        refuse_other_selection(self.config, call)
        pixels = pixels_of(call, "pixel_values", "pixel_values_images")
        image = tiles_with_cls(1, self.side, pixels.device)
        if self.config.vision_feature_select_strategy == "default":
            grid = raster(self.side, self.side, view=0, device=pixels.device)
            image = replace(image, grid=grid, pack=lambda map_TP: map_TP[0, 1:])
        return (image,) * len(pixels)

    def videos(self, call: Mapping[str, Any]) -> tuple[ImageGeometry, ...]:
        """One tile per frame, its CLS token first."""
        pixels = pixels_of(call, "pixel_values_videos", "pixel_values")
        count, num_frames = pixels.shape[:2]
        return (tiles_with_cls(num_frames, self.side, pixels.device),) * count

    def gray_tiles(
        self, tower_inputs: Sequence[Tensor], images: Sequence[ImageGeometry], pixels: PixelScale
    ) -> tuple[Tensor, ...]:
        """Grey levels of every patch's pixels; the CLS token sees none."""
        return gray_with_cls(super().gray_tiles(tower_inputs, images, pixels))

    def stacked_features(self, features: Sequence[Tensor]) -> Tensor:
        """All images, or all videos, in one tensor."""
        return one_tensor(features)


def _layers(tower: Any) -> Sequence[Any]:
    encoder = getattr(tower, "encoder", None)
    found: Sequence[Any] = (encoder or tower.vision_model.encoder).layers
    return found


class _TwinTower:
    """Two towers of which one runs at a time; a hook on them is a hook on both."""

    def __init__(self, towers: Sequence[nn.Module]) -> None:
        self.towers = towers

    def register_forward_pre_hook(self, hook: Callable[..., Any], **options: Any) -> _Handles:
        """Like `nn.Module.register_forward_pre_hook`."""
        return _Handles([tower.register_forward_pre_hook(hook, **options) for tower in self.towers])


class _Handles:
    """Takes several hooks off together."""

    def __init__(self, handles: Sequence[RemovableHandle]) -> None:
        self.handles = handles

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self.handles:
            handle.remove()


class _TwinAttention(nn.Module):
    """The attention of one layer in both towers: a probe on it sees whichever runs.

    A probe exchanges `config` and puts back what it found; each module gets its own one back.
    """

    def __init__(self, twins: Sequence[nn.Module]) -> None:
        super().__init__()
        self._twins = tuple(twins)  # a tuple, so that they do not become part of this module
        self._own = tuple(twin.config for twin in twins)

    @property
    def config(self) -> Any:
        """The configuration of the first."""
        return self._twins[0].config

    @config.setter
    def config(self, config: Any) -> None:
        for twin, own in zip(self._twins, self._own, strict=True):
            twin.config = own if config is self._own[0] else config
