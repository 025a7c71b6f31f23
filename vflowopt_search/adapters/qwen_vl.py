"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL (dense and with experts), and what is built as they are.

Shape suffixes: N = visual tokens of an image or video, D = features, L = deepstack layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vflowopt_search.adapters.base import ALL_SCORES, Family
from vflowopt_search.adapters.merged_patches import MergedPatchesAdapter
from vflowopt_search.importance.signals import ImageGeometry

INPUTS = ("image (any resolution)", "several images", "video")
POSITIONS = ("original",)
PACKED = "3-D positions cannot be packed"
FULL_LAYERS = "importance from vision layers with full attention only"
AUDIO = "audio stays whole; of a model that speaks, its `thinker` alone"


class Qwen2VLAdapter(MergedPatchesAdapter):
    """`qwen2_vl`: every vision layer attends within an image or a frame."""

    family = Family("qwen2_vl", INPUTS, POSITIONS, ALL_SCORES, limits=PACKED)


class Qwen25VLAdapter(MergedPatchesAdapter):
    """`qwen2_5_vl`: most vision layers attend within windows, by which its patches are sorted."""

    family = Family(
        "qwen2_5_vl",
        INPUTS,
        POSITIONS,
        ALL_SCORES,
        limits=f"{PACKED}; {FULL_LAYERS}",
    )

    @property
    def vision_layers(self) -> tuple[int, ...]:
        """The layers with full attention: a window knows nothing of the rest of the image."""
        return tuple(sorted(self.config.vision_config.fullatt_block_indexes))

    def patch_order(
        self, images: Sequence[ImageGeometry], call: Mapping[str, Any]
    ) -> Tensor | None:
        """Undo the order by windows, which the encoder keeps from its first to its last layer."""
        vision = self.config.vision_config
        window = vision.window_size // self.patch_size // self.merge_size  # in tokens
        before = torch.tensor([0, *(len(image.grid) for image in images)]).cumsum(0).tolist()
        place_N = torch.cat(
            [
                start + _place_by_window(image, window)
                for start, image in zip(before, images, strict=False)
            ]
        )
        block = torch.arange(self.merge_size**2, device=place_N.device)
        return (place_N[:, None] * len(block) + block).flatten()


class Qwen25OmniThinkerAdapter(Qwen25VLAdapter):
    """`qwen2_5_omni_thinker`: `qwen2_5_vl` that hears too."""

    family = Family(
        "qwen2_5_omni_thinker",
        INPUTS,
        POSITIONS,
        ALL_SCORES,
        limits=f"{PACKED}; {FULL_LAYERS}; {AUDIO}",
    )


class Exaone45Adapter(Qwen25VLAdapter):
    """`exaone4_5`: the vision encoder of `qwen2_5_vl` before a decoder with plain positions."""

    family = Family("exaone4_5", INPUTS, ("original", "packed"), ALL_SCORES, limits=FULL_LAYERS)


class Qwen3VLAdapter(MergedPatchesAdapter):
    """`qwen3_vl`: features of several vision layers enter the first decoder layers (deepstack)."""

    family = Family("qwen3_vl", INPUTS, POSITIONS, ALL_SCORES, limits=PACKED)

    def features(self, output: Any) -> list[Tensor]:
        """An encoding as one (N, 1 + L, D) per image or video: last features, then deepstack's."""
        return [
            torch.stack(layers, dim=1)
            for layers in zip(output.pooler_output, *output.deepstack_features, strict=True)
        ]

    def encoded(
        self, features: Sequence[Tensor], kind: str = "image"
    ) -> BaseModelOutputWithPooling:
        """The reverse of `features`, as `mm_encoder_outputs` must hold it."""
        output = BaseModelOutputWithPooling()
        output["pooler_output"] = [one[:, 0] for one in features]
        deepstack: Any = [
            [one[:, layer] for one in features] for layer in range(1, features[0].shape[1])
        ]
        setattr(output, "deepstack_features", deepstack)  # noqa: B010 - unknown to the annotation
        return output


class Qwen3VLMoeAdapter(Qwen3VLAdapter):
    """`qwen3_vl_moe`: `qwen3_vl` whose decoder layers hold experts."""

    family = Family("qwen3_vl_moe", INPUTS, POSITIONS, ALL_SCORES, limits=PACKED)


class Qwen3OmniMoeThinkerAdapter(Qwen3VLAdapter):
    """`qwen3_omni_moe_thinker`: `qwen3_vl_moe` that hears too."""

    family = Family(
        "qwen3_omni_moe_thinker", INPUTS, POSITIONS, ALL_SCORES, limits=f"{PACKED}; {AUDIO}"
    )


class Cosmos3OmniAdapter(Qwen3VLAdapter):
    """`cosmos3_omni`: the parts of `qwen3_vl`, by another name."""

    family = Family("cosmos3_omni", INPUTS, POSITIONS, ALL_SCORES, limits=PACKED)


def _place_by_window(image: ImageGeometry, window: int) -> Tensor:
    """Where each token of an image stands when windows of window x window follow each other."""
    grid = image.grid
    down, across = int(grid.row_N.max()) // window + 1, int(grid.col_N.max()) // window + 1
    window_N = (grid.view_N * down + grid.row_N // window) * across + grid.col_N // window
    return window_N.argsort(stable=True).argsort()
