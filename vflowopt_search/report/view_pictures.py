"""Which picture the tokens of each view lie on: what the vision encoder saw, or the whole image.

Shape suffixes: N = visual tokens of one image, K = tokens of one view, T = tiles, C = colour
channels, H, W = pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from vflowopt_search.adapters.base import Adapter
from vflowopt_search.adapters.feeding import encode_visuals, encoder_inputs
from vflowopt_search.calibration.samples import Sample
from vflowopt_search.importance.signals import ImageGeometry, TokenGrid
from vflowopt_search.objective import Objective
from vflowopt_search.pruning.inputs import kinds_of
from vflowopt_search.reference.encoder import encoded_batches
from vflowopt_search.strategy import PixelScale

_SAME_SHAPE = 0.05
"""Relative difference of two aspect ratios that still are the same rectangle."""


@dataclass(frozen=True, eq=False)
class ViewCells:
    """Where the tokens of one view lie: their indices among the image's, and their cells."""

    rows: int
    cols: int
    token_K: Tensor
    cell_K: Tensor


@dataclass(frozen=True, eq=False)
class Placed:
    """One image or video of a prompt.

    Attributes:
        position_N: where its tokens stand in the prompt.
        views: where they lie.
        names: what each view shows, in words.
        pictures: what they see, one for each view; None where that is not known.
        entropy_N: entropy of each token's patches, None where pixels are not known.
    """

    position_N: Tensor
    views: list[ViewCells]
    names: list[str]
    pictures: list[Image.Image | None]
    entropy_N: Tensor | None


def placed_images(objective: Objective, index: int) -> list[Placed]:
    """The images of a sample, then its videos."""
    adapter, source = objective.adapter, objective.source
    prepared = objective.reference.prepared.samples[index]
    sample = source.maps.samples[index]
    [inputs] = encoded_batches(adapter, source.maps.processor, [sample], 1)
    kinds = kinds_of(prepared.input_ids[None], adapter)
    found = []
    for kind, visuals in prepared.visuals.items():
        positions_S = kinds[kind][0].nonzero().squeeze(1)
        parts = torch.split(positions_S, [len(image.grid) for image in visuals.images])
        seen = _seen_tiles(adapter, inputs, kind, visuals.images, objective.facts.pixels)
        wholes = _whole_pictures(sample, kind, len(visuals.images))
        for number, image in enumerate(visuals.images):
            views = views_of(image.grid)
            entropy = None if visuals.entropy is None else image.pack(visuals.entropy[number])
            pictures = _of_views(views, seen[number], wholes[number])
            names = named(views, kind, number if len(visuals.images) > 1 else None)
            found.append(Placed(parts[number], views, names, pictures, entropy))
    return found


def views_of(grid: TokenGrid) -> list[ViewCells]:
    """The views of one image that are more than a single token such as CLS."""
    views = []
    for view in torch.unique(grid.view_N[~grid.separator_N]).tolist():
        token_K = ((grid.view_N == view) & ~grid.separator_N).nonzero().squeeze(1)
        row_K, col_K = grid.row_N[token_K], grid.col_N[token_K]
        rows, cols = int(row_K.max()) + 1, int(col_K.max()) + 1
        views.append(ViewCells(rows, cols, token_K.cpu(), (row_K * cols + col_K).cpu()))
    larger = [view for view in views if len(view.token_K) > 1]
    return larger or views


def named(views: Sequence[ViewCells], kind: str, number: int | None) -> list[str]:
    """What each view shows: the image, its base view and mosaic, a tile, a moment of a video.

    Args:
        views: of one image or video.
        kind: `image` or `video`.
        number: which one of the prompt it is, from 0; None where the prompt has no other.
    """
    whose = "" if number is None else f"{kind} {number + 1}, "
    if len(views) == 1:
        return [f"{whose}the whole {kind}" if whose else f"the {kind}"]
    cells = [view.rows * view.cols for view in views]
    if kind == "image" and len(views) == 2 and cells[0] < cells[1]:
        return [f"{whose}base view", f"{whose}high-resolution mosaic"]
    what = "view" if kind == "image" else "time step"
    return [f"{whose}{what} {place} of {len(views)}" for place in range(1, len(views) + 1)]


def _of_views(
    views: Sequence[ViewCells], tiles: list[Image.Image], wholes: Sequence[Image.Image]
) -> list[Image.Image | None]:
    """One picture per view: its tile, else the frame or image that it covers as a whole."""
    pictures: list[Image.Image | None] = []
    for number, view in enumerate(views):
        own = len(tiles) == len(views) or number == 0
        if own and tiles and _same_shape(tiles[number], view):
            pictures.append(tiles[number])
        elif wholes:
            pictures.append(wholes[number * len(wholes) // len(views)])
        else:
            pictures.append(None)
    return pictures


def _same_shape(picture: Image.Image, view: ViewCells) -> bool:
    ratio = picture.width / picture.height * view.rows / view.cols
    return abs(ratio - 1) < _SAME_SHAPE


def _whole_pictures(sample: Sample, kind: str, count: int) -> list[list[Image.Image]]:
    """What each of `count` geometries shows as a whole; nothing where they are tiles of images."""
    shown = [[image] for image in sample.images]
    if kind == "video":
        shown = [list(video.frames) for video in sample.videos]
    return shown if len(shown) == count else [[] for _ in range(count)]


def _seen_tiles(
    adapter: Adapter,
    inputs: Any,
    kind: str,
    images: Sequence[ImageGeometry],
    pixels: PixelScale | None,
) -> list[list[Image.Image]]:
    """The tiles that the vision encoder is given, per image; empty where it takes patches."""
    none: list[list[Image.Image]] = [[] for _ in images]
    seen: list[Any] = []

    def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(args[0] if args else next(iter(kwargs.values())))

    hook = adapter.vision_tower.register_forward_pre_hook(see, with_kwargs=True)
    try:
        with torch.inference_mode():
            encode_visuals(adapter, encoder_inputs(adapter, inputs, kind), kind)
    finally:
        hook.remove()
    if pixels is None or any(not isinstance(one, Tensor) or one.dim() != 4 for one in seen):
        return none
    tiles = [tile for batch_TCHW in seen for tile in batch_TCHW]
    if len(tiles) != sum(image.num_tiles for image in images) or len(tiles[0]) != len(pixels.mean):
        return none
    pictures = iter([restored(tile_CHW, pixels) for tile_CHW in tiles])
    return [[next(pictures) for _ in range(image.num_tiles)] for image in images]


def restored(tile_CHW: Tensor, pixels: PixelScale) -> Image.Image:
    """The picture that a processor normalised."""
    tile_CHW = tile_CHW.float().cpu()
    mean, std = (torch.tensor(each)[:, None, None] for each in (pixels.mean, pixels.std))
    levels_HWC = ((tile_CHW * std + mean) * 255).round().clamp(0, 255).permute(1, 2, 0)
    colour_HWC = levels_HWC.to(torch.uint8).expand(-1, -1, 3)
    return Image.fromarray(colour_HWC.contiguous().numpy())
