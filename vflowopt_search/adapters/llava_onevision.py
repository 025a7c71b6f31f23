"""LLaVA-OneVision: a base view and a mosaic, single tiles, or the pooled frames of a video.

Shape suffixes: T = tiles or frames, P = patches of a tile, N = visual tokens of one video.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vflowopt_search.adapters.base import ALL_SCORES, Family, one_tile
from vflowopt_search.adapters.llava import one_tensor, pixels_of, refuse_other_selection
from vflowopt_search.adapters.llava_next import MosaicAdapter, frames, joined
from vflowopt_search.importance.signals import ImageGeometry, TokenGrid


class LlavaOnevisionAdapter(MosaicAdapter):
    """`llava_onevision`: any-resolution images, several images, videos."""

    family = Family(
        model_type="llava_onevision",
        inputs=("image (any resolution)", "several images", "video"),
        positions=("original", "packed"),
        scores=ALL_SCORES,
        limits="none known",
    )

    @property
    def video_token_id(self) -> int:
        """Token id of the placeholder of one visual token of a video."""
        return int(self.config.video_token_id)

    def images(self, call: Mapping[str, Any]) -> tuple[ImageGeometry, ...]:
        """One image: base view and mosaic; in a prompt of several images each is one tile."""
        refuse_other_selection(self.config, call)
        sizes = call["image_sizes"]
        counts = call.get("batch_num_images")
        alone = [True] * len(sizes)
        if counts is not None:
            alone = [int(count) == 1 for count in counts for _ in range(int(count))]
        aspect = call.get("vision_aspect_ratio") or self.config.vision_aspect_ratio
        device = call["pixel_values"].device
        return tuple(
            self.mosaic(size, device, vision_aspect_ratio=aspect)
            if single
            else one_tile(self.side, device, separator=True)
            for size, single in zip(sizes, alone, strict=True)
        )

    def videos(self, call: Mapping[str, Any]) -> tuple[ImageGeometry, ...]:
        """One tile per frame, pooled by the model itself, and one newline behind them all."""
        refuse_other_selection(self.config, call)
        pixels = pixels_of(call, "pixel_values_videos", "pixel_values")
        count, num_frames = pixels.shape[:2]
        grid = joined(
            frames(num_frames, math.ceil(self.side / 2), pixels.device),
            _newline(num_frames - 1, pixels.device),
        )
        return (ImageGeometry(num_frames, self.side**2, grid, self._pooled),) * count

    def encoded(
        self, features: Sequence[Tensor], kind: str = "image"
    ) -> BaseModelOutputWithPooling:
        """Images as a list, videos as one tensor."""
        output = super().encoded(features, kind)
        if kind == "video":
            output["pooler_output"] = one_tensor(features)
        return output

    def _pooled(self, map_TP: Tensor) -> Tensor:
        pooled_N: Tensor = self.base.apply_pooling(map_TP[..., None]).flatten()
        return pad(pooled_N, (0, 1))


def _newline(view: int, device: torch.device) -> TokenGrid:
    nowhere = torch.tensor([-1], device=device)
    return TokenGrid(torch.full_like(nowhere, view), nowhere, nowhere, nowhere < 0)
