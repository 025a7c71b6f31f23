"""InternVL (2.5, 3, 3.5): square tiles, four patches to a token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vflowopt_search.adapters.base import ALL_SCORES, Adapter, Family, Parts, member
from vflowopt_search.adapters.tiles import pooled_tile, square_side
from vflowopt_search.errors import UnsupportedError
from vflowopt_search.importance.signals import ImageGeometry


class InternVLAdapter(Adapter):
    """`internvl`: tiles are images of their own, for the model is not told which belong together.

    The frames of a video come as tiles too, and are written with the same placeholder.
    """

    family = Family(
        model_type="internvl",
        inputs=("image (any resolution)", "several images", "video"),
        positions=("original", "packed"),
        scores=ALL_SCORES,
        limits="each tile of an image, and each frame of a video, counts as an image of its own",
    )

    def parts(self) -> Parts:
        """Its vision tower spells its layers in another way."""
        base = member(self.model, "model")
        tower = member(base, "vision_tower")
        attentions = [layer.attention for layer in member(tower, "encoder").layer]
        return Parts(base, member(base, "language_model"), tower, attentions)

    def check(self) -> None:
        """Patches must be square, and the features must leave out the CLS token alone."""
        self.require_every_patch()
        height, width = self.config.vision_config.patch_size
        if height != width:
            raise UnsupportedError(
                f"this internvl model has patches of {height} x {width} pixels; only square "
                "patches are supported"
            )

    @property
    def patch_size(self) -> int:
        """Side of a patch, in pixels; the configuration holds it twice."""
        return int(self.config.vision_config.patch_size[0])

    def images(self, call: Mapping[str, Any]) -> tuple[ImageGeometry, ...]:
        """One image per tile."""
        pixels_TCHW = call["pixel_values"]
        side = square_side(pixels_TCHW, self.patch_size)
        block = round(1 / self.config.downsample_ratio)
        tile = pooled_tile(side, block, pixels_TCHW.device)
        return (tile,) * len(pixels_TCHW)

    def stacked_features(self, features: Sequence[Tensor]) -> Any:
        """One tensor, tiles first."""
        return torch.stack(list(features))
