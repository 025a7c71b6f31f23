"""LLaVA-1.5 and its likes: one square tile per image, one token per patch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from vflowopt_search.adapters.base import ALL_SCORES, Adapter, Family, one_tile
from vflowopt_search.errors import UnsupportedError
from vflowopt_search.importance.signals import ImageGeometry


class LlavaAdapter(Adapter):
    """`llava` with a CLIP or SigLIP tower."""

    family = Family(
        model_type="llava",
        inputs=("image", "several images"),
        positions=("original", "packed"),
        scores=ALL_SCORES,
        limits="CLIP or SigLIP tower; a Pixtral tower (variable size) is refused",
    )

    def __init__(self, model: nn.Module) -> None:
        """Raise UnsupportedError for a tower whose images vary in size."""
        tower = getattr(model.config, "vision_config", None)
        kind = getattr(tower, "model_type", None)
        if kind == "pixtral":
            raise UnsupportedError(
                "this llava model has a pixtral tower, whose images vary in size and end their "
                "rows in [IMG_BREAK]; llava models with a CLIP or SigLIP tower are supported"
            )
        super().__init__(model)

    def images(self, call: Mapping[str, Any]) -> tuple[ImageGeometry, ...]:
        """One square tile per image."""
        pixels = call["pixel_values"]
        return tuple(one_tile(self.side, pixels.device) for _ in range(pixels.shape[0]))
