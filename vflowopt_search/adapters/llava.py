"""LLaVA-1.5 and its likes: one square tile per image, or a Pixtral tower's image of any size.

Shape suffixes: T = tiles, P = patches of a tile, X = pixels of a patch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from vflowopt_search.adapters.base import (
    ALL_SCORES,
    Adapter,
    Family,
    Parts,
    one_tile,
    raster,
)
from vflowopt_search.adapters.pixtral import (
    ROW_ENDS,
    pixtral_gray,
    pixtral_images,
    pixtral_parts,
)
from vflowopt_search.errors import UnsupportedError
from vflowopt_search.importance.signals import ImageGeometry, TokenGrid
from vflowopt_search.strategy import PixelScale


class LlavaAdapter(Adapter):
    """`llava` with a CLIP, SigLIP or Pixtral tower."""

    family = Family(
        model_type="llava",
        inputs=("image", "several images"),
        positions=("original", "packed"),
        scores=ALL_SCORES,
        limits=f"with a Pixtral tower {ROW_ENDS}; a CLS token that is kept ranks as a patch",
    )

    @property
    def has_pixtral(self) -> bool:
        """Whether images vary in size."""
        return bool(self.config.vision_config.model_type == "pixtral")

    @property
    def keeps_cls(self) -> bool:
        """Whether the tower's CLS token is a visual token like the patches."""
        selects = self.config.vision_feature_select_strategy
        return selects == "full" and super().num_prefix_tokens > 0

    @property
    def num_prefix_tokens(self) -> int:
        """1 where a CLS token is dropped before the features, else 0."""
        return 0 if self.keeps_cls else super().num_prefix_tokens

    def parts(self) -> Parts:
        """The usual ones, or those of a Pixtral tower."""
        return pixtral_parts(self.model) if self.has_pixtral else super().parts()

    def check(self) -> None:
        """Raise UnsupportedError where the first patch would be dropped for a CLS token."""
        if not self.keeps_cls:
            self.require_every_patch()

    def images(self, call: Mapping[str, Any]) -> tuple[ImageGeometry, ...]:
        """One tile per image: square, or of the image's own size."""
        refuse_other_selection(self.config, call)
        if self.has_pixtral:
            return pixtral_images(call, self.patch_size)
        pixels = call["pixel_values"]
        if self.keeps_cls:
            return (tiles_with_cls(1, self.side, pixels.device),) * len(pixels)
        return (one_tile(self.side, pixels.device),) * len(pixels)

    def gray_tiles(
        self, tower_inputs: Sequence[Tensor], images: Sequence[ImageGeometry], pixels: PixelScale
    ) -> tuple[Tensor, ...]:
        """Grey levels of every patch's pixels; a CLS token sees none."""
        if self.has_pixtral:
            return pixtral_gray(tower_inputs[0], images, pixels, self.patch_size)
        runs = super().gray_tiles(tower_inputs, images, pixels)
        return gray_with_cls(runs) if self.keeps_cls else runs


def refuse_other_selection(config: Any, call: Mapping[str, Any]) -> None:
    """UnsupportedError where a call selects features by another rule than the model was built for.

    Args:
        config: the model's configuration.
        call: the arguments of `get_image_features` or `get_video_features`.
    """
    asked, own = call.get("vision_feature_select_strategy"), config.vision_feature_select_strategy
    if asked is not None and asked != own:
        raise UnsupportedError(
            f"vision_feature_select_strategy={asked!r} was passed to a {config.model_type} model "
            f"configured for {own!r}; leave the argument out, or change the configuration"
        )


def pixels_of(call: Mapping[str, Any], *names: str) -> Tensor:
    """The pixels among the arguments of an encoding call, by the first of their names there is.

    Their name has changed between versions of transformers.
    """
    found: Tensor = next(call[name] for name in names if call.get(name) is not None)
    return found


def one_tensor(features: Sequence[Tensor]) -> Tensor:
    """Features of images or videos (N, D) as (images, N, D), or (1, all N, D) if N differs."""
    alike = len({len(one) for one in features}) == 1
    return torch.stack(list(features)) if alike else torch.cat(list(features))[None]


def tiles_with_cls(num_tiles: int, side: int, device: torch.device) -> ImageGeometry:
    """Square tiles that each begin with a CLS token, counted as patch 0.

    A CLS token lies on no grid and is no separator: it gets a view of its own behind its tile's,
    so that it is ranked by its score and merged with nobody.
    """
    one = raster(side, side, view=0, device=device)
    view_TP = 2 * torch.arange(num_tiles, device=device)[:, None].repeat(1, side**2 + 1)
    view_TP[:, 0] += 1
    grid = TokenGrid(
        view_N=view_TP.flatten(),
        row_N=pad(one.row_N, (1, 0)).repeat(num_tiles),
        col_N=pad(one.col_N, (1, 0)).repeat(num_tiles),
        separator_N=pad(one.separator_N, (1, 0)).repeat(num_tiles),
    )
    return ImageGeometry(num_tiles, side**2 + 1, grid, pack=torch.flatten)


def gray_with_cls(runs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Put a patch of a single grey level, whose entropy is 0, before the patches of every tile."""
    return tuple(pad(gray_TPX, (0, 0, 1, 0)) for gray_TPX in runs)
