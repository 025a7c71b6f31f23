"""Gemma 4: images of any size, padded to one number of patches; nine patches are a token.

Shape suffixes: I = images or frames, S = patches of one with padding, P = its own patches,
N = visual tokens of one image, T = frames of a video, X = pixels of a patch, B = prompts,
K = those of their tokens that a layer holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.masking_utils import sliding_window_overlay

from vflowopt_search.adapters.base import ALL_SCORES, Adapter, Family, raster
from vflowopt_search.adapters.blocks import same_block
from vflowopt_search.adapters.llava_next import joined
from vflowopt_search.errors import UnsupportedError
from vflowopt_search.importance.signals import ImageGeometry, by_run
from vflowopt_search.ops.entropy import gray_patches
from vflowopt_search.strategy import PixelScale


class Gemma4Adapter(Adapter):
    """`gemma4` without embeddings per layer: 26B-A4B and 31B."""

    family = Family(
        model_type="gemma4",
        inputs=("image (any resolution)", "several images", "video"),
        positions=("original", "packed"),
        scores=ALL_SCORES,
        limits=(
            "not E2B and E4B, whose every layer is given embeddings of its own; sliding windows "
            "span the tokens that are left"
        ),
    )

    def check(self) -> None:
        """Raise UnsupportedError for the small models of the family."""
        text = self.backbone.config
        for name in ("hidden_size_per_layer_input", "num_kv_shared_layers"):
            if getattr(text, name):
                raise UnsupportedError(
                    f"this gemma4 model has {name}={getattr(text, name)} (E2B, E4B), so that "
                    "layers are given more than the tokens a stage keeps; only models without "
                    "embeddings per layer and shared keys are supported (26B-A4B, 31B)"
                )

    @property
    def video_token_id(self) -> int | None:
        """Token id of the placeholder of one visual token of a video."""
        video = self.config.video_token_id
        return None if video is None else int(video)

    @property
    def pooling(self) -> int:
        """Patches along a side of a token."""
        return int(self.config.vision_config.pooling_kernel_size)

    def images(self, call: Mapping[str, Any]) -> tuple[ImageGeometry, ...]:
        """One tile per image, of its own size."""
        places_IS2 = call["image_position_ids"]
        return tuple(self._geometry(places_S2[None]) for places_S2 in places_IS2)

    def videos(self, call: Mapping[str, Any]) -> tuple[ImageGeometry, ...]:
        """One tile and one view per frame."""
        places = call["video_position_ids"]
        if places.dim() == 3:  # else transformers is an older one, whose videos are all as long
            places = torch.split(places, torch.as_tensor(call["num_frames_per_video"]).tolist())
        return tuple(self._geometry(places_TS2) for places_TS2 in places)

    def patch_order(
        self, images: Sequence[ImageGeometry], call: Mapping[str, Any]
    ) -> Tensor | None:
        """Where the patches are that are no padding."""
        return _is_patch(_places(call)).flatten().nonzero()[:, 0]

    def gray_tiles(
        self, tower_inputs: Sequence[Tensor], images: Sequence[ImageGeometry], pixels: PixelScale
    ) -> tuple[Tensor, ...]:
        """Grey levels of every patch's pixels; a patch holds its pixels channel by channel last."""
        side, tiles, first = self.patch_size, [], 0
        for image in images:
            flat_TPX = tower_inputs[0][first : first + image.num_tiles, : image.tile_patches]
            first += image.num_tiles
            patches = flat_TPX.reshape(-1, side, side, len(pixels.mean)).permute(0, 3, 1, 2)
            gray_1X = gray_patches(patches, pixels.mean, pixels.std, side)
            tiles.append(gray_1X.reshape(image.num_tiles, image.tile_patches, -1))
        return by_run(images, tiles)

    def blocks(self, call: Mapping[str, Any]) -> Tensor | None:
        """Each run of image or video tokens is a block, in models that see them both ways."""
        kind_BS = call.get("mm_token_type_ids")
        both_ways = self.backbone.config.use_bidirectional_attention == "vision"
        if kind_BS is None or not both_ways:
            return None
        visual_BS = (kind_BS == 1) | (kind_BS == 2)
        starts_BS = visual_BS & ~pad(visual_BS, (1, 0))[:, :-1]
        return torch.where(visual_BS, starts_BS.cumsum(-1) - 1, -1)

    def layer_mask(self, kind: str, blocks_BK: Tensor | None, **options: Any) -> Any:
        """Sliding layers: causal or in one block, within the window; others: causal."""
        if blocks_BK is None or kind != "sliding_attention":
            return super().layer_mask(kind, None, **options)
        options["or_mask_function"] = same_block(blocks_BK)
        options["and_mask_function"] = sliding_window_overlay(int(options["config"].sliding_window))
        return super().layer_mask("full_attention", None, **options)

    def _geometry(self, places_TS2: Tensor) -> ImageGeometry:
        """The frames of one image or video; they are of one size."""
        patches = int(_is_patch(places_TS2[0]).sum())
        places_P2 = places_TS2[0, :patches] // self.pooling
        width, height = (places_P2.amax(0) + 1).tolist()
        token_P = places_P2[:, 0] + width * places_P2[:, 1]
        frames = len(places_TS2)

        def pack(map_TP: Tensor) -> Tensor:
            pooled_TN = map_TP.new_zeros(frames, height * width)
            pooled_TN.index_add_(1, token_P.to(map_TP.device), map_TP)
            return (pooled_TN / self.pooling**2).flatten()

        views = (raster(height, width, view, places_TS2.device) for view in range(frames))
        return ImageGeometry(frames, patches, joined(*views), pack)


def _places(call: Mapping[str, Any]) -> Tensor:
    """Columns and rows of the patches that a call encodes, (I, S, 2); padding is (-1, -1)."""
    image = call.get("image_position_ids")
    found: Tensor = call["video_position_ids"] if image is None else image
    return found


def _is_patch(places_IS2: Tensor) -> Tensor:
    return (places_IS2 != -1).all(-1)
