"""Idefics3 and SmolVLM: a run of placeholders per tile, four (or more) patches to a token.

Shape suffixes: B = prompts, M = most tiles of a prompt, T = tiles that are no padding,
C = colour channels, H, W = pixels of a tile.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from vflowopt_search.adapters.base import ALL_SCORES, Adapter, Family, Parts, member
from vflowopt_search.adapters.tiles import pooled_tile, square_side
from vflowopt_search.errors import UnsupportedError
from vflowopt_search.importance.signals import ImageGeometry

LIMITS = (
    "each tile of an image counts as an image of its own; what stands between tiles "
    "(<row_1_col_1>, <global-img>) is text and never pruned; images padded to a common size are "
    "refused"
)


class Idefics3Adapter(Adapter):
    """`idefics3`: images cut into square tiles."""

    family = Family(
        model_type="idefics3",
        inputs=("image (any resolution)", "several images"),
        positions=("original", "packed"),
        scores=ALL_SCORES,
        limits=LIMITS,
    )

    def parts(self) -> Parts:
        """It has names of its own for its parts."""
        base = member(self.model, "model")
        tower = member(base, "vision_model")
        attentions = [layer.self_attn for layer in member(tower, "encoder").layers]
        return Parts(base, member(base, "text_model"), tower, attentions)

    def images(self, call: Mapping[str, Any]) -> tuple[ImageGeometry, ...]:
        """One image per tile; tiles that pad a prompt to the length of others are none."""
        pixels_BMCHW = call["pixel_values"]
        real_T = (pixels_BMCHW != 0).flatten(2).any(-1).flatten()
        mask_BMHW = call.get("pixel_attention_mask")
        if mask_BMHW is not None:
            self._require_whole_tiles(mask_BMHW.flatten(0, 1)[real_T])
        side = square_side(pixels_BMCHW, self.patch_size)
        tile = pooled_tile(side, int(self.config.scale_factor), pixels_BMCHW.device)
        return (tile,) * int(real_T.sum())

    def features(self, output: Any) -> list[Tensor]:
        """An encoding as one (N, D) per tile; the model gives one tensor per prompt."""
        joined = torch.cat(list(output.pooler_output))
        return list(joined.chunk(len(output.last_hidden_state)))

    def _require_whole_tiles(self, mask_THW: Tensor) -> None:
        """Padded patches would ask and answer in the attention that is recorded."""
        padding = int((max_pool2d(mask_THW.float(), self.patch_size) == 0).sum())
        if padding:
            raise UnsupportedError(
                f"pixel_attention_mask calls {padding} patches of these tiles padding, and images "
                "padded to a common size are not pruned; let the processor resize them "
                "(do_resize=True)"
            )


class SmolVLMAdapter(Idefics3Adapter):
    """`smolvlm`: the same build; the frames of a video are tiles with the same placeholder."""

    family = Family(
        model_type="smolvlm",
        inputs=("image (any resolution)", "several images", "video"),
        positions=("original", "packed"),
        scores=ALL_SCORES,
        limits=f"{LIMITS}; its processor needs num2words",
    )
