"""LLaVA-NeXT: a base view, then a mosaic of tiles whose rows end in a newline token.

Shape suffixes: T = tiles, P = patches of a tile, N = visual tokens of one image.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from vflowopt_search.adapters.base import (
    ALL_SCORES,
    Adapter,
    Family,
    raster,
    rows_with_separators,
)
from vflowopt_search.adapters.llava import refuse_other_selection
from vflowopt_search.importance.signals import ImageGeometry, TokenGrid


class MosaicAdapter(Adapter):
    """Families whose `pack_image_features` puts a base view and a mosaic into one row of tokens."""

    def check(self) -> None:
        """Raise UnsupportedError unless each patch gives one feature."""
        self.require_every_patch()

    def mosaic(self, size: Any, device: torch.device, **packing: Any) -> ImageGeometry:
        """Base view and mosaic of one image, packed by the model itself.

        Args:
            size: height and width of the image, as in `image_sizes`.
            device: where the geometry is to be.
            packing: further arguments of the model's `pack_image_features`.
        """
        num_tiles = image_size_to_num_patches(
            image_size=size,
            grid_pinpoints=self.config.image_grid_pinpoints,
            patch_size=self.config.vision_config.image_size,
        )
        size_12 = torch.as_tensor(size).reshape(1, 2)
        newline = torch.full((1,), torch.nan, device=device)

        def pack(map_TP: Tensor) -> Tensor:
            features, _ = self.base.pack_image_features(
                [map_TP[..., None]], size_12, image_newline=newline, **packing
            )
            packed_N: Tensor = features[0][:, 0]
            return packed_N

        patches = self.side**2
        probe_N = pack(torch.zeros(num_tiles, patches, device=device))
        mosaic = rows_with_separators(probe_N.isnan()[patches:], view=1)
        grid = joined(raster(self.side, self.side, view=0, device=device), mosaic)
        # scores must be finite: separators, whose value means nothing, get 0
        return ImageGeometry(
            num_tiles, patches, grid, lambda map_TP: pack(map_TP).nan_to_num(nan=0.0)
        )


class LlavaNextAdapter(MosaicAdapter):
    """`llava_next`: any-resolution images, each of them with its mosaic."""

    family = Family(
        model_type="llava_next",
        inputs=("image (any resolution)", "several images"),
        positions=("original", "packed"),
        scores=ALL_SCORES,
        limits="none known",
    )

    def images(self, call: Mapping[str, Any]) -> tuple[ImageGeometry, ...]:
        """Base view and mosaic of each image."""
        refuse_other_selection(self.config, call)
        device = call["pixel_values"].device
        selects = self.config.vision_feature_select_strategy
        return tuple(
            self.mosaic(size, device, vision_feature_select_strategy=selects)
            for size in call["image_sizes"]
        )


def joined(*grids: TokenGrid) -> TokenGrid:
    """Grids one behind the other; their views must differ already."""
    return TokenGrid(
        view_N=torch.cat([grid.view_N for grid in grids]),
        row_N=torch.cat([grid.row_N for grid in grids]),
        col_N=torch.cat([grid.col_N for grid in grids]),
        separator_N=torch.cat([grid.separator_N for grid in grids]),
    )


def frames(count: int, side: int, device: torch.device) -> TokenGrid:
    """The grid of the frames of a video, side x side tokens each; every frame is a view."""
    return joined(*(raster(side, side, view=frame, device=device) for frame in range(count)))
