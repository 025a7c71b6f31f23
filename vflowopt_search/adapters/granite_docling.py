"""Granite Docling: square tiles of a page; features of several vision layers enter the decoder.

Shape suffixes: B = prompts, M = most tiles of a prompt, N = visual tokens of a tile, D = features,
L = deepstack layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vflowopt_search.adapters.base import ALL_SCORES, Family, Parts, member
from vflowopt_search.adapters.square_tiles import SquareTilesAdapter
from vflowopt_search.adapters.tiles import pooled_tile, square_side
from vflowopt_search.importance.signals import ImageGeometry


class GraniteDoclingAdapter(SquareTilesAdapter):
    """`granite_docling`: sixteen patches to a token, or four where a page is read finely."""

    family = Family(
        model_type="granite_docling",
        inputs=("image (any resolution)", "several images"),
        positions=("original", "packed"),
        scores=ALL_SCORES,
        limits="each tile of an image counts as an image of its own; what stands between is text",
    )

    def parts(self) -> Parts:
        """It has names of its own for its parts."""
        base = member(self.model, "model")
        tower = member(base, "vision_model")
        attentions = [layer.self_attn for layer in member(tower, "encoder").layers]
        return Parts(base, member(base, "text_model"), tower, attentions)

    def images(self, call: Mapping[str, Any]) -> tuple[ImageGeometry, ...]:
        """One square per tile that is no padding."""
        pixels_BMCHW, real_BM = call["pixel_values"], call["pixel_attention_mask"]
        side = square_side(pixels_BMCHW, self.patch_size)
        block = int(self.config.vision_config.scale_factor)
        if call.get("tile_fine_mask") is not None:
            block //= 2
        return (pooled_tile(side, block, pixels_BMCHW.device),) * int(real_BM.sum())

    def features(self, output: Any) -> list[Tensor]:
        """An encoding as one (N, 1 + L, D) per tile; the model gives one tensor per prompt."""
        layers = [output.pooler_output, *output.deepstack_features]
        joined = torch.stack([torch.cat(list(layer)) for layer in layers], dim=1)
        return list(joined.chunk(len(output.last_hidden_state)))

    def encoded(
        self, features: Sequence[Tensor], kind: str = "image"
    ) -> BaseModelOutputWithPooling:
        """The reverse of `features`; how finely a page is read was decided before."""
        output = BaseModelOutputWithPooling()
        output["pooler_output"] = [one[:, 0] for one in features]
        layers = range(1, features[0].shape[1])
        deepstack: Any = [[one[:, layer] for one in features] for layer in layers]
        setattr(output, "deepstack_features", deepstack)  # noqa: B010 - unknown to the annotation
        setattr(output, "router_logits", None)  # noqa: B010
        return output
