"""Gemma 3: averaged patches, images that see themselves both ways, sliding layers.

Shape suffixes: B = prompts, S = their tokens, K = those of them that a layer holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.masking_utils import sliding_window_overlay

from vflowopt_search.adapters.base import ALL_SCORES, Adapter, Family, member
from vflowopt_search.adapters.blocks import same_block
from vflowopt_search.adapters.tiles import pooled_tile
from vflowopt_search.importance.signals import ImageGeometry


class Gemma3Adapter(Adapter):
    """`gemma3` with a vision tower."""

    family = Family(
        model_type="gemma3",
        inputs=("image", "several images"),
        positions=("original", "packed"),
        scores=ALL_SCORES,
        limits="pan-and-scan crops count as images; sliding windows span the tokens that are left",
    )

    def images(self, call: Mapping[str, Any]) -> tuple[ImageGeometry, ...]:
        """One averaged square per image."""
        pixels = call["pixel_values"]
        projector = member(self.base, "multi_modal_projector")
        tile = pooled_tile(projector.patches_per_image, projector.kernel_size, pixels.device)
        return (tile,) * len(pixels)

    def stacked_features(self, features: Sequence[Tensor]) -> Any:
        """One tensor, images first."""
        return torch.stack(list(features))

    def blocks(self, call: Mapping[str, Any]) -> Tensor | None:
        """Each run of image tokens is a block; text is in none."""
        kind_BS = call.get("token_type_ids")
        if kind_BS is None:
            return None
        image_BS = kind_BS == 1
        starts_BS = image_BS & ~pad(image_BS, (1, 0))[:, :-1]
        return torch.where(image_BS, starts_BS.cumsum(-1) - 1, -1)

    def layer_mask(self, kind: str, blocks_BK: Tensor | None, **options: Any) -> Any:
        """Causal or in one block; sliding layers look no further than their window even so."""
        if blocks_BK is None:
            return super().layer_mask(kind, None, **options)
        options["or_mask_function"] = same_block(blocks_BK)
        if kind == "sliding_attention":
            window = int(options["config"].sliding_window)
            options["and_mask_function"] = sliding_window_overlay(window)
        return super().layer_mask("full_attention", None, **options)


class ShieldGemma2Adapter(Gemma3Adapter):
    """`shieldgemma2`: a `gemma3` that judges images, loaded as a model that answers."""

    family = Family(
        model_type="shieldgemma2",
        inputs=("image", "several images"),
        positions=("original", "packed"),
        scores=ALL_SCORES,
        limits="load it with AutoModelForImageTextToText, not as a classifier of images",
    )
