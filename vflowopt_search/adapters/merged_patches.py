"""Families whose encoder takes a list of patches of any image and merges squares of them to tokens.

Patches come in merge blocks: those of one token follow each other, token by token in raster order,
frame by frame. The encoder attends within an image, or within a frame (a pair of frames of pixels)
of a video. Positions are 3-D (M-RoPE).

Shape suffixes: I = images, S = patches of all images, T = tiles (frames), P = patches of a tile,
X = pixels of a patch in both frames, C = channels, H, W = rows and columns of pixels, N = tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from vflowopt_search.adapters.base import Adapter, Parts, member, raster
from vflowopt_search.importance.signals import ImageGeometry, TokenGrid, by_run
from vflowopt_search.ops.entropy import gray_patches
from vflowopt_search.strategy import PixelScale


class MergedPatchesAdapter(Adapter):
    """What Qwen-VL and GLM-V have in common: `visual.blocks`, grids of (frames, rows, columns)."""

    def parts(self) -> Parts:
        """The vision encoder is `visual`, its layers are `blocks` with one `attn` each."""
        base = member(self.model, "model")
        tower = member(base, "visual")
        attentions: list[nn.Module] = [member(block, "attn") for block in member(tower, "blocks")]
        return Parts(base, member(base, "language_model"), tower, attentions)

    @property
    def video_token_id(self) -> int | None:
        """Token id of the placeholder of one visual token of a video."""
        return int(self.config.video_token_id)

    @property
    def num_prefix_tokens(self) -> int:
        """Every token of the encoder is a patch."""
        return 0

    @property
    def merge_size(self) -> int:
        """Patches along one side of a token."""
        return int(self.config.vision_config.spatial_merge_size)

    def images(self, call: Mapping[str, Any]) -> tuple[ImageGeometry, ...]:
        """One geometry per row of `image_grid_thw`."""
        return self._geometries(call["image_grid_thw"])

    def videos(self, call: Mapping[str, Any]) -> tuple[ImageGeometry, ...]:
        """One geometry per row of `video_grid_thw`; each frame is a tile and a view of its own."""
        return self._geometries(call["video_grid_thw"])

    def gray_tiles(
        self, tower_inputs: Sequence[Tensor], images: Sequence[ImageGeometry], pixels: PixelScale
    ) -> tuple[Tensor, ...]:
        """Grey levels of both frames of every patch; an image's frames are alike."""
        flat_SX, side = torch.cat(list(tower_inputs)), self.patch_size
        # one below the other, the frames of a patch are a picture of as many patches
        frames_SCHW = flat_SX.reshape(len(flat_SX), len(pixels.mean), -1, side)
        gray_SX = gray_patches(frames_SCHW, pixels.mean, pixels.std, side).flatten(1)
        sizes = [image.num_tiles * image.tile_patches for image in images]
        tiles = [
            part_SX.reshape(image.num_tiles, image.tile_patches, -1)
            for part_SX, image in zip(torch.split(gray_SX, sizes), images, strict=True)
        ]
        return by_run(images, tiles)

    def _geometries(self, grid_I3: Tensor) -> tuple[ImageGeometry, ...]:
        return tuple(
            merged(frames, height, width, self.merge_size, grid_I3.device)
            for frames, height, width in grid_I3.tolist()
        )


def merged(
    frames: int, height: int, width: int, merge_size: int, device: torch.device | None = None
) -> ImageGeometry:
    """Geometry of `frames` frames of height x width patches, `merge_size`^2 of them to a token."""

    def pack(map_TP: Tensor) -> Tensor:
        return map_TP.reshape(-1, merge_size**2).mean(1)

    grid = _tokens(frames, height // merge_size, width // merge_size, device)
    return ImageGeometry(frames, height * width, grid, pack)


def pooled(
    frames: int, height: int, width: int, merge_size: int, device: torch.device | None = None
) -> ImageGeometry:
    """The same where the patches of a frame come in raster order."""

    def pack(map_TP: Tensor) -> Tensor:
        return avg_pool2d(map_TP.reshape(frames, height, width), merge_size).flatten()

    grid = _tokens(frames, height // merge_size, width // merge_size, device)
    return ImageGeometry(frames, height * width, grid, pack)


def _tokens(frames: int, rows: int, cols: int, device: torch.device | None) -> TokenGrid:
    """Frame by frame in raster order, each frame a view of its own."""
    frame = raster(rows, cols, view=0, device=device)
    return TokenGrid(
        view_N=torch.arange(frames, device=device).repeat_interleave(len(frame)),
        row_N=frame.row_N.repeat(frames),
        col_N=frame.col_N.repeat(frames),
        separator_N=frame.separator_N.repeat(frames),
    )
