"""Mistral Small 3.1 and its likes: a Pixtral tower, 2 x 2 patches merged into one token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from vflowopt_search.adapters.base import ALL_SCORES, Adapter, Family, Parts, member
from vflowopt_search.adapters.pixtral import (
    ROW_ENDS,
    pixtral_gray,
    pixtral_images,
    pixtral_parts,
)
from vflowopt_search.importance.signals import ImageGeometry
from vflowopt_search.strategy import PixelScale


class Mistral3Adapter(Adapter):
    """`mistral3`: images of any size, one token per `spatial_merge_size` squared patches."""

    family = Family(
        model_type="mistral3",
        inputs=("image (any resolution)", "several images"),
        positions=("original", "packed"),
        scores=ALL_SCORES,
        limits=ROW_ENDS,
    )

    def parts(self) -> Parts:
        """Those of a model with a Pixtral tower."""
        return pixtral_parts(self.model)

    def images(self, call: Mapping[str, Any]) -> tuple[ImageGeometry, ...]:
        """One tile per image, of its own size; a token's value is the mean of its patches."""
        return pixtral_images(call, self.patch_size, merge=int(self.config.spatial_merge_size))

    def gray_tiles(
        self, tower_inputs: Sequence[Tensor], images: Sequence[ImageGeometry], pixels: PixelScale
    ) -> tuple[Tensor, ...]:
        """Grey levels of the patches of each image, what the batch is padded with left out."""
        return pixtral_gray(tower_inputs[0], images, pixels, self.patch_size)


class LightOnOcrAdapter(Mistral3Adapter):
    """`lighton_ocr`: the same build under other names, with a Qwen 3 decoder."""

    family = Family(
        model_type="lighton_ocr",
        inputs=("image (any resolution)", "several images"),
        positions=("original", "packed"),
        scores=ALL_SCORES,
        limits="row ends count as text and stay",
    )

    def parts(self) -> Parts:
        """Its tower is called encoder."""
        base = member(self.model, "model")
        tower = member(base, "vision_encoder")
        attentions = [layer.attention for layer in member(tower, "transformer").layers]
        return Parts(base, member(base, "language_model"), tower, attentions)
