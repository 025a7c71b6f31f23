"""Pixels for a model of which only the configuration is known, by its family's image processor.

Only for families of which the configuration says how many visual tokens an image gets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from PIL import Image

Pixels = Callable[[list[Image.Image]], dict[str, Any]]
"""Makes the inputs that show some images, one to a prompt."""

QWEN_PIXELS = {"shortest_edge": 56 * 56, "longest_edge": 16384 * 28 * 28}
"""Fewest and most pixels of an image, as the checkpoints of Qwen2-VL and Qwen2.5-VL say."""
INTERNVL_TILES = 12
"""Most tiles of an image beside its thumbnail, as the checkpoints of InternVL say."""


def _any_resolution(config: Any, processor_class: Any) -> Pixels:
    """Base view and tiles, as many as the configuration's pinpoints give."""
    side = config.vision_config.image_size
    square = {"height": side, "width": side}
    processor = processor_class(
        size=square,
        crop_size=square,
        image_grid_pinpoints=config.image_grid_pinpoints,
        do_center_crop=False,
    )
    return lambda images: dict(processor(images=images, return_tensors="pt"))


def _llava_next(config: Any) -> Pixels:
    from transformers import LlavaNextImageProcessorPil

    return _any_resolution(config, LlavaNextImageProcessorPil)


def _llava_onevision(config: Any) -> Pixels:
    from transformers import LlavaOnevisionImageProcessorPil

    return _any_resolution(config, LlavaOnevisionImageProcessorPil)


def _llava(config: Any) -> Pixels:
    """One square tile, whatever the resolution."""
    from transformers import CLIPImageProcessorPil

    side = config.vision_config.image_size
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    return lambda images: dict(processor(images=images, return_tensors="pt"))


def _qwen_vl(config: Any) -> Pixels:
    """As many patches as the image has, four of them to a token."""
    from transformers import Qwen2VLImageProcessorPil

    vision = config.vision_config
    processor = Qwen2VLImageProcessorPil(
        size=QWEN_PIXELS,
        patch_size=vision.patch_size,
        temporal_patch_size=vision.temporal_patch_size,
        merge_size=vision.spatial_merge_size,
    )
    return lambda images: dict(processor(images=images, return_tensors="pt"))


def _internvl(config: Any) -> Pixels:
    """Square tiles and a thumbnail; the model is not told which belong together."""
    from transformers import GotOcr2ImageProcessorPil

    height, width = config.vision_config.image_size
    processor = GotOcr2ImageProcessorPil(
        size={"height": height, "width": width}, crop_to_patches=True, max_patches=INTERNVL_TILES
    )

    def pixels(images: list[Image.Image]) -> dict[str, Any]:
        return {"pixel_values": processor(images=images, return_tensors="pt")["pixel_values"]}

    return pixels


FROM_CONFIG: Mapping[str, Callable[[Any], Pixels]] = MappingProxyType(
    {
        "internvl": _internvl,
        "llava": _llava,
        "llava_next": _llava_next,
        "llava_onevision": _llava_onevision,
        "qwen2_5_vl": _qwen_vl,
        "qwen2_vl": _qwen_vl,
    }
)
"""Model type to what makes its pixels from a configuration."""
