"""Molmo 2: overlapping crops; which patches a token pools is written in an index.

Shape suffixes: N = visual tokens, V = most patches of a token, T = crops or frames, P = patches of
one, B = prompts, S = their tokens, K = those of them that a layer holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vflowopt_search.adapters.base import ALL_SCORES, Adapter, Family, Parts, member, raster
from vflowopt_search.adapters.blocks import same_block
from vflowopt_search.adapters.llava_next import joined
from vflowopt_search.importance.signals import ImageGeometry, TokenGrid, by_run
from vflowopt_search.ops.entropy import gray_patches
from vflowopt_search.strategy import PixelScale


class Molmo2Adapter(Adapter):
    """`molmo2`: a low-resolution view of an image, then its crops; or the frames of a video."""

    family = Family(
        model_type="molmo2",
        inputs=("image (any resolution)", "several images", "video"),
        positions=("original", "packed"),
        scores=ALL_SCORES,
        limits="row ends (<im_col>) count as text and stay; a batch holds images or videos",
    )

    def parts(self) -> Parts:
        """Its tower holds its layers itself."""
        base = member(self.model, "model")
        tower = member(base, "vision_tower")
        attentions: list[nn.Module] = [layer.self_attn for layer in member(tower, "layers")]
        return Parts(base, member(base, "language_model"), tower, attentions)

    @property
    def video_token_id(self) -> int | None:
        """The image placeholder: a video is spelled with it too."""
        return self.image_token_id

    @property
    def side(self) -> int:
        """Patches along one side of a crop."""
        return int(self.config.vision_config.image_size[0]) // self.patch_size

    def images(self, call: Mapping[str, Any]) -> tuple[ImageGeometry, ...]:
        """One geometry per image: its low-resolution view, then the mosaic of its crops."""
        grids = [
            joined(raster(down, across, 0, pooling.device), raster(rows, cols, 1, pooling.device))
            for pooling in [call["image_token_pooling"]]
            for down, across, rows, cols in call["image_grids"].tolist()
        ]
        return self._geometries(grids, call["image_token_pooling"])

    def videos(self, call: Mapping[str, Any]) -> tuple[ImageGeometry, ...]:
        """One geometry per video, one view per frame."""
        pooling_NV = call["video_token_pooling"]
        grids = [
            joined(*(raster(rows, cols, view, pooling_NV.device) for view in range(frames)))
            for frames, rows, cols in call["video_grids"].tolist()
        ]
        return self._geometries(grids, pooling_NV)

    def gray_tiles(
        self, tower_inputs: Sequence[Tensor], images: Sequence[ImageGeometry], pixels: PixelScale
    ) -> tuple[Tensor, ...]:
        """Grey levels of every patch's pixels; a patch holds its pixels with channels last."""
        flat, side = torch.cat(list(tower_inputs)).flatten(0, 1), self.patch_size
        patches = flat.reshape(len(flat), side, side, -1).permute(0, 3, 1, 2)
        gray = gray_patches(patches, pixels.mean, pixels.std, side).reshape(
            -1, self.side**2, side**2
        )
        sizes = [image.num_tiles for image in images]
        return by_run(images, torch.split(gray, sizes))

    def blocks(self, call: Mapping[str, Any]) -> Tensor | None:
        """All images of a prompt, with their row ends, are one block."""
        kind_BS = call.get("mm_token_type_ids")
        return None if kind_BS is None else torch.where(kind_BS == 1, 0, -1)

    def layer_mask(self, kind: str, blocks_BK: Tensor | None, **options: Any) -> Any:
        """Causal, or among visual tokens."""
        if blocks_BK is not None:
            options["or_mask_function"] = same_block(blocks_BK)
        return super().layer_mask(kind, None, **options)

    def _geometries(
        self, grids: Sequence[TokenGrid], pooling_NV: Tensor
    ) -> tuple[ImageGeometry, ...]:
        """Cut the index by images; where the patches of one end, those of the next begin."""
        patches = self.side**2
        real_NV = pooling_NV[(pooling_NV >= 0).any(-1)]
        geometries, first = [], 0
        for grid, index_NV in zip(
            grids, torch.split(real_NV, [len(one) for one in grids]), strict=True
        ):
            tiles = int(index_NV.max()) // patches + 1 - first
            own_NV = torch.where(index_NV >= 0, index_NV - first * patches, -1)
            geometries.append(ImageGeometry(tiles, patches, grid, _Pool(own_NV)))
            first += tiles
        return tuple(geometries)


class _Pool:
    """Mean over the patches of each token."""

    def __init__(self, index_NV: Tensor) -> None:
        self.index_NV = index_NV

    def __call__(self, map_TP: Tensor) -> Tensor:
        index_NV = self.index_NV.to(map_TP.device)
        real_NV = index_NV >= 0
        value_NV = map_TP.flatten()[index_NV.clamp(min=0)] * real_NV
        return value_NV.sum(1) / real_NV.sum(1)
