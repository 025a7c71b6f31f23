"""PaliGemma and PaliGemma 2: image and question see each other both ways, the answer does not.

Shape suffixes: B = prompts, S = their tokens, K = those of them that a layer holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vflowopt_search.adapters.base import ALL_SCORES, Adapter, Family, one_tile
from vflowopt_search.adapters.blocks import same_block
from vflowopt_search.importance.signals import ImageGeometry


class PaliGemmaAdapter(Adapter):
    """`paligemma` with a Gemma or Gemma 2 decoder."""

    family = Family(
        model_type="paligemma",
        inputs=("image", "several images"),
        positions=("original", "packed"),
        scores=ALL_SCORES,
        limits="PaliGemma 2: attention must be eager, as transformers has no other for it",
    )

    def images(self, call: Mapping[str, Any]) -> tuple[ImageGeometry, ...]:
        """One square tile per image, a token for each patch."""
        pixels = call["pixel_values"]
        return (one_tile(self.side, pixels.device),) * len(pixels)

    def stacked_features(self, features: Sequence[Tensor]) -> Any:
        """One tensor, images first."""
        return torch.stack(list(features))

    def blocks(self, call: Mapping[str, Any]) -> Tensor | None:
        """The prefix is one block, (B, S); a suffix to train on is in none."""
        kind_BS = call.get("token_type_ids")
        return None if kind_BS is None else torch.where(kind_BS == 0, 0, -1)

    def layer_mask(self, kind: str, blocks_BK: Tensor | None, **options: Any) -> Any:
        """What the pattern allows, or within the prefix: there PaliGemma 2 knows no window."""
        if blocks_BK is not None:
            options["or_mask_function"] = same_block(blocks_BK)
        return super().layer_mask(kind, None, **options)
