"""The Pixtral tower: images of any size, all of them in one packed sequence.

Between the rows of an image the prompt has [IMG_BREAK], a token id of its own.
Shape suffixes: T = tiles (1: the image), P = patches of an image, N = visual tokens of one image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from vflowopt_search.adapters.base import Parts, member, raster
from vflowopt_search.importance.signals import ImageGeometry, by_run
from vflowopt_search.ops.entropy import gray_patches
from vflowopt_search.strategy import PixelScale

ROW_ENDS = "row ends ([IMG_BREAK], [IMG_END]) count as text and stay"


@dataclass(frozen=True, eq=False)
class PixtralImage(ImageGeometry):
    """Geometry of an image of `height` x `width` pixels, what the batch is padded with left out."""

    height: int
    width: int


def pixtral_parts(model: nn.Module) -> Parts:
    """The parts of a model whose `vision_tower` is Pixtral's."""
    base = member(model, "model")
    tower = member(base, "vision_tower")
    attentions = [layer.attention for layer in member(tower, "transformer").layers]
    return Parts(base, member(base, "language_model"), tower, attentions)


def pixtral_images(
    call: Mapping[str, Any], patch_size: int, merge: int = 1
) -> tuple[ImageGeometry, ...]:
    """Geometry of each image of a `get_image_features` call.

    Args:
        call: has `pixel_values` and, if the batch is padded, `image_sizes` (height, width).
        patch_size: side of a patch, in pixels.
        merge: so many patches down and across are one token.
    """
    pixels = call["pixel_values"]
    sizes = call.get("image_sizes")
    if sizes is None:
        sizes = [pixels.shape[-2:]] * len(pixels)
    return tuple(
        _image(int(height), int(width), patch_size, merge, pixels.device) for height, width in sizes
    )


def _image(height: int, width: int, patch_size: int, merge: int, device: Any) -> PixtralImage:
    rows, cols = height // patch_size, width // patch_size

    def pack(map_TP: Tensor) -> Tensor:
        return avg_pool2d(map_TP.reshape(1, 1, rows, cols), merge).flatten()

    return PixtralImage(
        num_tiles=1,
        tile_patches=rows * cols,
        grid=raster(rows // merge, cols // merge, view=0, device=device),
        pack=pack,
        height=height,
        width=width,
    )


def pixtral_gray(
    pixels_TCHW: Tensor, images: Sequence[ImageGeometry], scale: PixelScale, patch_size: int
) -> tuple[Tensor, ...]:
    """Grey levels of every patch's pixels, uint8 (T, P, X) per run, without the padding."""
    patches = []
    for image, canvas_CHW in zip(images, pixels_TCHW, strict=True):
        assert isinstance(image, PixtralImage)
        own_1CHW = canvas_CHW[None, :, : image.height, : image.width]
        patches.append(gray_patches(own_1CHW, scale.mean, scale.std, patch_size))
    return by_run(images, patches)
