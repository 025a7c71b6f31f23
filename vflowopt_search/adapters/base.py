"""What every family shares: where the parts are in a transformers multimodal model.

Shape suffixes: P = patches of a tile, N = visual tokens of one image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vflowopt_search.errors import ModelError, UnsupportedError
from vflowopt_search.importance.signals import ImageGeometry, TokenGrid


@dataclass(frozen=True)
class Family:
    """What a family of models can do, as `vflowopt-search models` prints it.

    Attributes:
        model_type: `config.model_type` in transformers.
        inputs: what a prompt may hold.
        positions: how positions can be kept after the first stage.
        scores: importance scores available.
        limits: what is refused, in words.
    """

    model_type: str
    inputs: tuple[str, ...]
    positions: tuple[str, ...]
    scores: tuple[str, ...]
    limits: str


ALL_SCORES = ("received_attention", "text_attention", "uniform", "random")


class Adapter(ABC):
    """A loaded model of a family whose base holds `vision_tower` and `language_model`.

    Subclasses add `family` and `images`; see `pruning.anatomy.Anatomy` for what each member says.
    """

    family: Family

    def __init__(self, model: nn.Module) -> None:
        """Raise UnsupportedError where this very model is one the family cannot do right."""
        self.model = model
        self.base: Any = _member(model, "model")
        self.backbone: Any = _member(self.base, "language_model")
        self.vision_tower: Any = _member(self.base, "vision_tower")
        self.decoder_layers: Sequence[nn.Module] = self.backbone.layers
        self.config: Any = model.config
        encoder = getattr(self.vision_tower, "encoder", None)
        encoder = encoder if encoder is not None else self.vision_tower.vision_model.encoder
        self.vision_attentions: Sequence[nn.Module] = [layer.self_attn for layer in encoder.layers]
        self._check_cropping()

    @property
    def model_type(self) -> str:
        """`config.model_type` of the model."""
        return str(self.config.model_type)

    @property
    def image_token_id(self) -> int:
        """Token id of the placeholder of one visual token."""
        return int(self.config.image_token_id)

    @property
    def refused_tokens(self) -> Mapping[int, str]:
        """Placeholder ids of inputs that are not pruned, and what they are in words."""
        video = getattr(self.config, "video_token_id", None)
        return {} if video is None else {int(video): "a video"}

    @property
    def patch_size(self) -> int:
        """Side of a patch, in pixels."""
        return int(self.config.vision_config.patch_size)

    @property
    def num_prefix_tokens(self) -> int:
        """1 where the vision encoder puts a CLS token before the patches, else 0."""
        embeddings = getattr(self.vision_tower, "embeddings", None)
        embeddings = embeddings or self.vision_tower.vision_model.embeddings
        return int(hasattr(embeddings, "class_embedding"))

    @property
    def side(self) -> int:
        """Patches along one side of a tile."""
        return int(self.config.vision_config.image_size) // self.patch_size

    def decoder_attention(self, layer: int) -> nn.Module:
        """The attention module of a decoder layer."""
        attention: nn.Module = _member(self.decoder_layers[layer], "self_attn")
        return attention

    @abstractmethod
    def images(self, call: Mapping[str, Any]) -> tuple[ImageGeometry, ...]:
        """Geometry of each image of one `get_image_features` call."""

    def _check_cropping(self) -> None:
        """The features must hold every patch and no CLS token, or the map is off by one."""
        selects = self.config.vision_feature_select_strategy
        wanted = "default" if self.num_prefix_tokens else "full"
        if selects != wanted:
            tower = self.config.vision_config.model_type
            raise UnsupportedError(
                f"this {self.model_type} model selects {selects!r} features of a {tower} tower, "
                f"which has {self.num_prefix_tokens} CLS tokens; only {wanted!r} gives one "
                "visual token per patch"
            )


def _member(module: nn.Module, name: str) -> Any:
    found = getattr(module, name, None)
    if found is None:
        raise ModelError(
            f"{type(module).__name__} has no part named {name!r}, where its family has one; "
            "load it with AutoModelForImageTextToText of transformers 5.17 or newer"
        )
    return found


def raster(height: int, width: int, view: int, device: torch.device | None = None) -> TokenGrid:
    """The grid of a full rectangle of tokens in raster order, no separators."""
    row_N = torch.arange(height, device=device).repeat_interleave(width)
    col_N = torch.arange(width, device=device).repeat(height)
    return TokenGrid(
        view_N=torch.full_like(row_N, view),
        row_N=row_N,
        col_N=col_N,
        separator_N=torch.zeros_like(row_N, dtype=torch.bool),
    )


def rows_with_separators(separator_N: Tensor, view: int) -> TokenGrid:
    """The grid of rows that each end in a separator, from where the separators are."""
    before_N = separator_N.long().cumsum(0) - separator_N.long()
    place_N = torch.arange(len(separator_N), device=separator_N.device)
    start_N = torch.zeros_like(place_N)
    start_N[1:] = torch.where(separator_N[:-1], place_N[1:], 0).cummax(0).values
    return TokenGrid(
        view_N=torch.full_like(place_N, view),
        row_N=torch.where(separator_N, -1, before_N),
        col_N=torch.where(separator_N, -1, place_N - start_N),
        separator_N=separator_N,
    )


def one_tile(
    side: int, device: torch.device | None = None, *, separator: bool = False
) -> ImageGeometry:
    """An image that is one tile of side x side patches, with a separator behind it if asked."""
    grid = raster(side, side, view=0, device=device)
    if not separator:
        return ImageGeometry(num_tiles=1, grid=grid, pack=lambda map_TP: map_TP[0])
    nowhere = torch.tensor([-1], device=device)
    ended = TokenGrid(
        view_N=torch.cat([grid.view_N, torch.zeros_like(nowhere)]),
        row_N=torch.cat([grid.row_N, nowhere]),
        col_N=torch.cat([grid.col_N, nowhere]),
        separator_N=torch.cat([grid.separator_N, nowhere < 0]),
    )
    return ImageGeometry(num_tiles=1, grid=ended, pack=_then_separator)


def _then_separator(map_TP: Tensor) -> Tensor:
    return torch.cat([map_TP[0], map_TP.new_zeros(1)])
