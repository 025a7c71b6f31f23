"""Families with a vision encoder like Qwen-VL's before a text decoder of another kind.

Shape suffixes: P = patches of a tile, T = tiles (frames), S = patches of all images, X = pixels of
a patch, F = frames that share a patch, C = channels, H, W = rows and columns of pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vflowopt_search.adapters.base import ALL_SCORES, Family, Parts, member, raster
from vflowopt_search.adapters.llava_next import joined
from vflowopt_search.adapters.merged_patches import MergedPatchesAdapter, pooled
from vflowopt_search.adapters.qwen_vl import FULL_LAYERS, PACKED, Qwen3VLAdapter, Qwen25VLAdapter
from vflowopt_search.importance.signals import ImageGeometry
from vflowopt_search.strategy import PixelScale

INPUTS = ("image (any resolution)", "several images", "video")
LINE = ("original", "packed")


class CohereCompassAdapter(Qwen3VLAdapter):
    """`cohere_compass`: Qwen3-VL's encoder and deepstack before a Cohere decoder."""

    family = Family("cohere_compass", INPUTS, ("original",), ALL_SCORES, limits=PACKED)


class HyperClovaXVisionAdapter(Qwen25VLAdapter):
    """`hyperclovax_vision_v2`: Qwen2.5-VL's encoder before a decoder with 1-D positions."""

    family = Family("hyperclovax_vision_v2", INPUTS, LINE, ALL_SCORES, limits=FULL_LAYERS)

    def parts(self) -> Parts:
        """Its tower has a name of its own."""
        base = member(self.model, "model")
        tower = member(base, "vision_model")
        attentions: list[nn.Module] = [member(block, "attn") for block in member(tower, "blocks")]
        return Parts(base, member(base, "language_model"), tower, attentions)


class MuseGlimmerAdapter(MergedPatchesAdapter):
    """`muse_glimmer`: patches in raster order, sorted by windows inside the encoder."""

    family = Family("muse_glimmer", INPUTS, LINE, ALL_SCORES, limits=FULL_LAYERS)

    def parts(self) -> Parts:
        """Its tower holds its layers itself."""
        base = member(self.model, "model")
        tower = member(base, "vision_tower")
        attentions: list[nn.Module] = [member(layer, "attn") for layer in member(tower, "layers")]
        return Parts(base, member(base, "language_model"), tower, attentions)

    @property
    def merge_size(self) -> int:
        """Patches along one side of a token."""
        return int(self.config.vision_config.merge_size)

    @property
    def vision_layers(self) -> tuple[int, ...]:
        """The layers with full attention: a window knows nothing of the rest of the image."""
        kinds = self.config.vision_config.layer_types
        return tuple(layer for layer, kind in enumerate(kinds) if kind == "full_attention")

    def patch_order(
        self, images: Sequence[ImageGeometry], call: Mapping[str, Any]
    ) -> Tensor | None:
        """Undo the order by windows, which the encoder keeps from its first to its last layer."""
        window = int(self.config.vision_config.pos_emb_height)  # in patches
        before, places = 0, []
        for image, grid_3 in zip(images, _grids(call), strict=True):
            frames, height, width = grid_3.tolist()
            patches = joined(*(raster(height, width, view) for view in range(frames)))
            down, across = (height - 1) // window + 1, (width - 1) // window + 1
            window_P = (patches.view_N * down + patches.row_N // window) * across
            window_P = window_P + patches.col_N // window
            places.append(before + window_P.argsort(stable=True).argsort())
            before += image.num_tiles * image.tile_patches
        return torch.cat(places)

    def gray_tiles(
        self, tower_inputs: Sequence[Tensor], images: Sequence[ImageGeometry], pixels: PixelScale
    ) -> tuple[Tensor, ...]:
        """As Qwen-VL, but a patch holds frame by frame what Qwen's holds channel by channel."""
        flat_SX, side = torch.cat(list(tower_inputs)), self.patch_size
        by_frame_SFCX = flat_SX.reshape(len(flat_SX), -1, len(pixels.mean), side * side)
        return super().gray_tiles([by_frame_SFCX.transpose(1, 2).flatten(1)], images, pixels)

    def _geometries(self, grid_I3: Tensor) -> tuple[ImageGeometry, ...]:
        return tuple(
            pooled(frames, height, width, self.merge_size, grid_I3.device)
            for frames, height, width in grid_I3.tolist()
        )


class MuseSparkAdapter(MuseGlimmerAdapter):
    """`muse_spark`: the same with experts, and with audio."""

    family = Family(
        "muse_spark", INPUTS, LINE, ALL_SCORES, limits=f"{FULL_LAYERS}; audio stays whole"
    )


def _grids(call: Mapping[str, Any]) -> Tensor:
    """Frames, rows and columns of patches of what a call encodes, (I, 3)."""
    image = call.get("image_grid_thw")
    found: Tensor = call["video_grid_thw"] if image is None else image
    return found
