"""Relatives of LLaVA and InternVL: every image, or tile of an image, is a square of patches.

They differ in the names of their parts and in how many patches become one visual token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vflowopt_search.adapters.base import ALL_SCORES, Adapter, Family, Parts, member
from vflowopt_search.adapters.internvl import InternVLAdapter
from vflowopt_search.adapters.llava import refuse_other_selection
from vflowopt_search.adapters.tiles import pooled_tile, square_side
from vflowopt_search.errors import UnsupportedError
from vflowopt_search.importance.signals import ImageGeometry

TILES = "each tile of an image counts as an image of its own"
POSITIONS = ("original", "packed")
CUT = ("image (any resolution)", "several images")
WHOLE = ("image", "several images")


class SquareTilesAdapter(Adapter):
    """What they have in common: one visual token for each block of block x block patches."""

    tower_name: ClassVar[str] = "vision_tower"

    def parts(self) -> Parts:
        """The usual ones, by the name that this family gives its tower."""
        base = member(self.model, "model")
        tower = member(base, self.tower_name)
        attentions = [layer.self_attn for layer in member(tower, "encoder").layers]
        return Parts(base, member(base, "language_model"), tower, attentions)

    @property
    def block(self) -> int:
        """Patches along a side of a token."""
        return 1

    def images(self, call: Mapping[str, Any]) -> tuple[ImageGeometry, ...]:
        """One square per image or tile."""
        pixels_TCHW = call["pixel_values"]
        side = square_side(pixels_TCHW, self.patch_size)
        return (pooled_tile(side, self.block, pixels_TCHW.device),) * len(pixels_TCHW)

    def stacked_features(self, features: Sequence[torch.Tensor]) -> Any:
        """One tensor, tiles first."""
        return torch.stack(list(features))


class DownsampledAdapter(SquareTilesAdapter):
    """Families whose projector joins `downsample_factor` squared patches."""

    @property
    def block(self) -> int:
        """Patches along a side of a token."""
        return int(self.config.downsample_factor)


class AyaVisionAdapter(DownsampledAdapter):
    """`aya_vision`: a SigLIP tower before a Cohere 2 decoder."""

    family = Family("aya_vision", CUT, POSITIONS, ALL_SCORES, limits=TILES)

    def check(self) -> None:
        """Raise UnsupportedError where the first patch would be dropped for a CLS token."""
        self.require_every_patch()

    def images(self, call: Mapping[str, Any]) -> tuple[ImageGeometry, ...]:
        """One square per tile."""
        refuse_other_selection(self.config, call)
        return super().images(call)


class Cohere2VisionAdapter(DownsampledAdapter):
    """`cohere2_vision` (Command A Vision): built as `aya_vision`."""

    family = Family("cohere2_vision", CUT, POSITIONS, ALL_SCORES, limits=TILES)


class DeepseekVLAdapter(SquareTilesAdapter):
    """`deepseek_vl`: a SigLIP tower, one token per patch."""

    family = Family("deepseek_vl", WHOLE, POSITIONS, ALL_SCORES, limits="none known")
    tower_name = "vision_model"


class DeepseekVLHybridAdapter(DeepseekVLAdapter):
    """`deepseek_vl_hybrid`: beside the SigLIP tower one that sees the image in high resolution."""

    family = Family(
        "deepseek_vl_hybrid",
        WHOLE,
        POSITIONS,
        ALL_SCORES,
        limits="importance from the tower of low resolution",
    )


class JanusAdapter(SquareTilesAdapter):
    """`janus` when it reads images: one token per patch."""

    family = Family(
        "janus", WHOLE, POSITIONS, ALL_SCORES, limits="text is generated; images it draws are not"
    )
    tower_name = "vision_model"


class VipLlavaAdapter(SquareTilesAdapter):
    """`vipllava`: features of several CLIP layers, their CLS tokens dropped."""

    family = Family("vipllava", WHOLE, POSITIONS, ALL_SCORES, limits="none known")

    def check(self) -> None:
        """Its projector always drops the first token of the tower."""
        if self.num_prefix_tokens != 1:
            raise UnsupportedError(
                f"this vipllava model has a {self.config.vision_config.model_type} tower without "
                "a CLS token, so that the first patch is dropped; only CLIP towers are supported"
            )


class Ovis2Adapter(SquareTilesAdapter):
    """`ovis2`: a token is a mixture of words of a visual vocabulary, `hidden_stride`^2 patches."""

    family = Family(
        "ovis2",
        CUT,
        POSITIONS,
        ALL_SCORES,
        limits=f"{TILES}; the indicators around tiles count as text and stay",
    )

    def parts(self) -> Parts:
        """Its tower holds a transformer below the head that picks visual words."""
        base = member(self.model, "model")
        tower = member(base, "vision_tower")
        layers = member(tower, "transformer").encoder.layers
        attentions: list[nn.Module] = [layer.attention for layer in layers]
        return Parts(base, member(base, "language_model"), tower, attentions)

    @property
    def block(self) -> int:
        """Patches along a side of a token."""
        return int(self.config.vision_config.hidden_stride)

    def check(self) -> None:
        """Raise UnsupportedError where tokens at the border would hold patches that are none."""
        if self.side % self.block:
            raise UnsupportedError(
                f"this ovis2 model has {self.side} patches along a side, which blocks of "
                f"{self.block} x {self.block} do not fill; only whole blocks are supported"
            )

    def encoded(
        self, features: Sequence[torch.Tensor], kind: str = "image"
    ) -> BaseModelOutputWithPooling:
        """The features, and those of the indicators, which are the same for every image."""
        output = super().encoded(features, kind)
        table = self.base.visual_embeddings_table
        count = int(self.vision_tower.num_visual_indicator_tokens)
        last = torch.arange(self.base.visual_vocab_size, device=features[0].device)[-count:]
        with torch.no_grad():
            setattr(output, "visual_indicator_features", table(last))  # noqa: B010
        return output


class QianfanOCRAdapter(InternVLAdapter):
    """`qianfan_ocr`: InternVL with a Qwen 3 decoder."""

    family = Family("qianfan_ocr", CUT, POSITIONS, ALL_SCORES, limits=TILES)

    def parts(self) -> Parts:
        """Its tower has no encoder around its layers."""
        base = member(self.model, "model")
        tower = member(base, "vision_tower")
        attentions: list[nn.Module] = [layer.attention for layer in member(tower, "layers")]
        return Parts(base, member(base, "language_model"), tower, attentions)
