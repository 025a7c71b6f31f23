"""LLaVA-OneVision: a base view, then a mosaic of tiles whose rows end in a newline token.

Shape suffixes: T = tiles, P = patches of a tile, N = visual tokens of one image.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.models.llava_onevision.modeling_llava_onevision import (
    image_size_to_num_patches,
)

from vflowopt_search.adapters.base import (
    ALL_SCORES,
    Adapter,
    Family,
    one_tile,
    raster,
    rows_with_separators,
)
from vflowopt_search.importance.signals import ImageGeometry, TokenGrid


class LlavaOnevisionAdapter(Adapter):
    """`llava_onevision`: any-resolution images, alone or several to a prompt."""

    family = Family(
        model_type="llava_onevision",
        inputs=("image (any resolution)", "several images"),
        positions=("original", "packed"),
        scores=ALL_SCORES,
        limits="video is refused",
    )

    def images(self, call: Mapping[str, Any]) -> tuple[ImageGeometry, ...]:
        """One image: base view and mosaic; in a prompt of several images each is one tile."""
        sizes = call["image_sizes"]
        counts = call.get("batch_num_images")
        alone = [True] * len(sizes)
        if counts is not None:
            alone = [int(count) == 1 for count in counts for _ in range(int(count))]
        aspect = call.get("vision_aspect_ratio") or self.config.vision_aspect_ratio
        device = call["pixel_values"].device
        return tuple(
            self._any_resolution(size, aspect, device)
            if single
            else one_tile(self.side, device, separator=True)
            for size, single in zip(sizes, alone, strict=True)
        )

    def _any_resolution(self, size: Any, aspect: str, device: torch.device) -> ImageGeometry:
        """Base view and mosaic of one image of `size` (height, width), packed by the model."""
        num_tiles = image_size_to_num_patches(
            image_size=size,
            grid_pinpoints=self.config.image_grid_pinpoints,
            patch_size=self.config.vision_config.image_size,
        )
        size_12 = torch.as_tensor(size).reshape(1, 2)
        newline = torch.full((1,), torch.nan, device=device)

        def pack(map_TP: Tensor) -> Tensor:
            features, _ = self.base.pack_image_features(
                [map_TP[..., None]], size_12, image_newline=newline, vision_aspect_ratio=aspect
            )
            packed_N: Tensor = features[0][:, 0]
            return packed_N

        probe_N = pack(torch.zeros(num_tiles, self.side**2, device=device))
        mosaic = rows_with_separators(probe_N.isnan()[self.side**2 :], view=1)
        base = raster(self.side, self.side, view=0, device=device)
        return ImageGeometry(num_tiles, _joined(base, mosaic), _zero_newlines(pack))


def _joined(base: TokenGrid, mosaic: TokenGrid) -> TokenGrid:
    return TokenGrid(
        view_N=torch.cat([base.view_N, mosaic.view_N]),
        row_N=torch.cat([base.row_N, mosaic.row_N]),
        col_N=torch.cat([base.col_N, mosaic.col_N]),
        separator_N=torch.cat([base.separator_N, mosaic.separator_N]),
    )


def _zero_newlines(pack: Any) -> Any:
    """Scores must be finite: separators, whose value means nothing, get 0."""
    return lambda map_TP: pack(map_TP).nan_to_num(nan=0.0)
