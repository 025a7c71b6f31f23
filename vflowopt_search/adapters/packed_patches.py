"""Encoders of the SigLIP kind that take the patches of all images, of any size, in one sequence.

Shape suffixes: T = tiles (1: the image), P = patches of an image, N = visual tokens of one image,
I = images, S = patches of all images, C = channels, H, W = pixels of a patch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from vflowopt_search.adapters.base import (
    ALL_SCORES,
    Family,
    Parts,
    member,
    rows_with_separators,
)
from vflowopt_search.adapters.merged_patches import MergedPatchesAdapter, merged, pooled
from vflowopt_search.importance.signals import ImageGeometry, TokenGrid
from vflowopt_search.strategy import PixelScale

INPUTS = ("image (any resolution)", "several images")
PACKED = "3-D positions cannot be packed"


class PackedPatchesAdapter(MergedPatchesAdapter):
    """What they have in common: `self_attn` in every layer, and no videos that we could follow."""

    @property
    def video_token_id(self) -> None:
        """Videos are refused."""
        return


class PaddleOCRVLAdapter(PackedPatchesAdapter):
    """`paddleocr_vl`: patches in raster order, four of them joined by the projector."""

    family = Family("paddleocr_vl", INPUTS, ("original",), ALL_SCORES, limits=PACKED)

    def parts(self) -> Parts:
        """The encoder stands two modules deep."""
        base = member(self.model, "model")
        tower = member(base, "visual")
        attentions = [layer.self_attn for layer in member(tower, "vision_model").encoder.layers]
        return Parts(base, member(base, "language_model"), tower, attentions)

    def images(self, call: Mapping[str, Any]) -> tuple[ImageGeometry, ...]:
        """One tile per image, of the image's own size."""
        return tuple(
            pooled(1, height, width, self.merge_size, call["image_grid_thw"].device)
            for _, height, width in call["image_grid_thw"].tolist()
        )

    def gray_tiles(
        self, tower_inputs: Sequence[Tensor], images: Sequence[ImageGeometry], pixels: PixelScale
    ) -> tuple[Tensor, ...]:
        """Grey levels of every patch's pixels, which come as (1, S, C, H, W)."""
        flat = [pixels_1SCHW[0].flatten(1) for pixels_1SCHW in tower_inputs]
        return super().gray_tiles(flat, images, pixels)


class HunYuanVLAdapter(PackedPatchesAdapter):
    """`hunyuan_vl`: like PaddleOCR-VL, with learned tokens at row ends and around each image."""

    family = Family("hunyuan_vl", INPUTS, ("original",), ALL_SCORES, limits=PACKED)

    def parts(self) -> Parts:
        """The tower holds its layers itself."""
        base = member(self.model, "model")
        tower = member(base, "vision_tower")
        attentions = [layer.self_attn for layer in member(tower, "layers")]
        return Parts(base, member(base, "language_model"), tower, attentions)

    def images(self, call: Mapping[str, Any]) -> tuple[ImageGeometry, ...]:
        """One tile per image; row ends, the begin and the end are separators."""
        return tuple(
            _framed(height, width, self.merge_size, call["image_grid_thw"].device)
            for _, height, width in call["image_grid_thw"].tolist()
        )


class VideoLlama3Adapter(PackedPatchesAdapter):
    """`video_llama_3`: each image says how many of its patches are averaged to a token."""

    family = Family(
        "video_llama_3",
        INPUTS,
        ("original", "packed"),
        ALL_SCORES,
        limits="no video: the model has dropped tokens of it already, by their likeness",
    )

    def parts(self) -> Parts:
        """The tower goes by `vision_model`."""
        base = member(self.model, "model")
        tower = member(base, "vision_model")
        attentions = [layer.self_attn for layer in member(tower, "encoder").layers]
        return Parts(base, member(base, "language_model"), tower, attentions)

    def images(self, call: Mapping[str, Any]) -> tuple[ImageGeometry, ...]:
        """Patches in merge blocks, whose size may differ between images."""
        grid_I3, merge_I = call["image_grid_thw"], call["image_merge_sizes"]
        return tuple(
            merged(frames, height, width, int(merge), grid_I3.device)
            for (frames, height, width), merge in zip(grid_I3.tolist(), merge_I, strict=True)
        )


class KimiK25Adapter(PackedPatchesAdapter):
    """`kimi_k25` (K2.5, K2.6): patches in raster order, a decoder with latent keys and values."""

    family = Family(
        "kimi_k25",
        INPUTS,
        ("original", "packed"),
        ALL_SCORES,
        limits="no video: its frames are averaged to one",
    )

    def parts(self) -> Parts:
        """The tower holds its layers itself."""
        base = member(self.model, "model")
        tower = member(base, "vision_tower")
        attentions = [layer.attn for layer in member(tower, "layers")]
        return Parts(base, member(base, "language_model"), tower, attentions)

    @property
    def merge_size(self) -> int:
        """Patches along one side of a token; the configuration holds it twice."""
        return int(self.config.vision_config.merge_kernel_size[0])

    def images(self, call: Mapping[str, Any]) -> tuple[ImageGeometry, ...]:
        """One tile per image, of the image's own size."""
        return tuple(
            pooled(1, height, width, self.merge_size, call["image_grid_thw"].device)
            for _, height, width in call["image_grid_thw"].tolist()
        )

    def gray_tiles(
        self, tower_inputs: Sequence[Tensor], images: Sequence[ImageGeometry], pixels: PixelScale
    ) -> tuple[Tensor, ...]:
        """Grey levels of every patch's pixels, which come as (S, C, H, W)."""
        flat = [pixels_SCHW.flatten(1) for pixels_SCHW in tower_inputs]
        return super().gray_tiles(flat, images, pixels)


class Cosmos3EdgeAdapter(MergedPatchesAdapter):
    """`cosmos3_edge`: patches in merge blocks, the colours of a pixel side by side."""

    family = Family(
        "cosmos3_edge",
        (*INPUTS, "video"),
        ("original",),
        ALL_SCORES,
        limits=f"{PACKED}; no search: its processor leaves out mm_token_type_ids unless told",
    )

    def parts(self) -> Parts:
        """SigLIP's layers in Qwen's place."""
        base = member(self.model, "model")
        tower = member(base, "visual")
        attentions = [layer.self_attn for layer in member(tower, "encoder").layers]
        return Parts(base, member(base, "language_model"), tower, attentions)

    def gray_tiles(
        self, tower_inputs: Sequence[Tensor], images: Sequence[ImageGeometry], pixels: PixelScale
    ) -> tuple[Tensor, ...]:
        """Grey levels of every patch's pixels, which come as (S, H * W * C)."""
        colours = len(pixels.mean)
        flat = [
            one_SX.reshape(len(one_SX), -1, colours).transpose(1, 2).flatten(1)
            for one_SX in tower_inputs
        ]
        return super().gray_tiles(flat, images, pixels)


def _framed(height: int, width: int, merge: int, device: torch.device) -> ImageGeometry:
    """The same patches, with a token behind each row, one before the image and one behind it."""
    rows, cols = height // merge, width // merge
    ends_RC = torch.zeros(rows, cols + 1, dtype=torch.bool, device=device)
    ends_RC[:, -1] = True
    inner = rows_with_separators(ends_RC.flatten(), view=0)

    def pack(map_TP: Tensor) -> Tensor:
        map_1RC = avg_pool2d(map_TP.reshape(1, height, width), merge)
        return pad(pad(map_1RC, (0, 1)).flatten(), (1, 1))

    grid = TokenGrid(
        view_N=pad(inner.view_N, (1, 1)),
        row_N=pad(inner.row_N, (1, 1), value=-1),
        col_N=pad(inner.col_N, (1, 1), value=-1),
        separator_N=pad(inner.separator_N, (1, 1), value=True),
    )
    return ImageGeometry(1, height * width, grid, pack)
