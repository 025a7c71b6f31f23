"""Llama 4: square tiles, four patches to a token, a CLS token behind the patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vflowopt_search.adapters.base import ALL_SCORES, Adapter, Family, Parts, member
from vflowopt_search.adapters.tiles import pooled_tile
from vflowopt_search.importance.signals import ImageGeometry


class Llama4Adapter(Adapter):
    """`llama4`: Scout and Maverick."""

    family = Family(
        model_type="llama4",
        inputs=("image (any resolution)", "several images"),
        positions=("original", "packed"),
        scores=ALL_SCORES,
        limits=(
            "each tile of an image counts as an image of its own; attention chunks span the "
            "tokens that are left; its image processor needs torchvision, and transformers has no "
            "beam search for its images"
        ),
    )

    def parts(self) -> Parts:
        """The whole model is its own base, and the decoder has a head inside."""
        tower = member(self.model, "vision_model")
        backbone = member(member(self.model, "language_model"), "model")
        attentions = [layer.self_attn for layer in member(tower, "model").layers]
        return Parts(self.model, backbone, tower, attentions)

    @property
    def num_suffix_tokens(self) -> int:
        """The CLS token comes last."""
        return 1

    @property
    def last_layer_whole(self) -> bool:
        """Its experts shape what they give like what the layer was given."""
        return True

    def images(self, call: Mapping[str, Any]) -> tuple[ImageGeometry, ...]:
        """One image per tile."""
        pixels = call["pixel_values"]
        block = round(1 / self.config.vision_config.pixel_shuffle_ratio)
        return (pooled_tile(self.side, block, pixels.device),) * len(pixels)

    def features(self, output: Any) -> list[Tensor]:
        """An encoding as one (N, D) per tile; the projector comes later, inside forward."""
        return list(output.last_hidden_state)

    def encoded(
        self, features: Sequence[Tensor], kind: str = "image"
    ) -> BaseModelOutputWithPooling:
        """The reverse of `features`, as `mm_encoder_outputs` must hold it."""
        output = BaseModelOutputWithPooling()
        output["last_hidden_state"] = torch.stack(list(features))
        return output
