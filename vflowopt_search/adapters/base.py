"""What every family shares: where the parts are in a transformers multimodal model.

Shape suffixes: P = patches of a tile, N = visual tokens of one image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor, nn
from transformers.masking_utils import LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vflowopt_search.errors import ModelError, UnsupportedError
from vflowopt_search.importance.signals import ImageGeometry, TokenGrid
from vflowopt_search.ops.entropy import gray_patches
from vflowopt_search.strategy import PixelScale


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


@dataclass(frozen=True)
class Parts:
    """Where the parts of a model are.

    Attributes:
        base: the model without its head: encodes images and calls the backbone.
        backbone: the text decoder; has `layers` and is given `inputs_embeds`.
        vision_tower: the vision encoder; its first argument is pixels.
        vision_attentions: the attention module of every vision encoder layer.
    """

    base: Any
    backbone: Any
    vision_tower: Any
    vision_attentions: Sequence[nn.Module]


class Adapter(ABC):
    """A loaded model of one family; subclasses say what differs from the usual.

    The usual is LLaVA's build: `model.model` holds `vision_tower` and `language_model`, and the
    tower is given tiles of pixels (T, C, H, W). See `pruning.anatomy.Anatomy` for each member.
    """

    family: ClassVar[Family]
    knows_grid: ClassVar[bool] = True
    """Whether it is known where tokens lie on their image; recycling and entropy need it."""

    def __init__(self, model: nn.Module) -> None:
        """Raise UnsupportedError where this very model is one the family cannot do right."""
        self.model = model
        self.config: Any = model.config
        parts = self.parts()
        self.base, self.backbone = parts.base, parts.backbone
        self.vision_tower, self.vision_attentions = parts.vision_tower, parts.vision_attentions
        self.decoder_layers: Sequence[nn.Module] = member(self.backbone, "layers")
        self.check()

    def parts(self) -> Parts:
        """Find the parts; ModelError where one is missing."""
        base = member(self.model, "model")
        tower = member(base, "vision_tower")
        encoder = getattr(tower, "encoder", None)
        encoder = encoder if encoder is not None else member(tower, "vision_model").encoder
        attentions = [layer.self_attn for layer in encoder.layers]
        return Parts(base, member(base, "language_model"), tower, attentions)

    def check(self) -> None:  # noqa: B027 - most families have nothing to check
        """Raise UnsupportedError for a variant of the family that cannot be done right."""

    @property
    def model_type(self) -> str:
        """`config.model_type` of the model."""
        return str(self.config.model_type)

    @property
    def image_token_id(self) -> int:
        """Token id of the placeholder of one visual token of an image."""
        return int(self.config.image_token_id)

    @property
    def video_token_id(self) -> int | None:
        """Token id of the placeholder of one visual token of a video; None: videos are refused."""
        return None

    @property
    def refused_tokens(self) -> Mapping[int, str]:
        """Placeholder ids of inputs that are not pruned, and what they are in words."""
        video = getattr(self.config, "video_token_id", None)
        if video is None or self.video_token_id is not None or video == self.image_token_id:
            return {}
        return {int(video): "a video"}

    @property
    def patch_size(self) -> int:
        """Side of a patch, in pixels."""
        return int(self.config.vision_config.patch_size)

    @property
    def num_prefix_tokens(self) -> int:
        """1 where the vision encoder puts a CLS token before the patches, else 0."""
        embeddings = getattr(self.vision_tower, "embeddings", None)
        inner = getattr(self.vision_tower, "vision_model", None)
        embeddings = embeddings if embeddings is not None else getattr(inner, "embeddings", None)
        return int(hasattr(embeddings, "class_embedding") or hasattr(embeddings, "cls_token"))

    @property
    def num_suffix_tokens(self) -> int:
        """Tokens of the vision encoder behind the patches of a tile."""
        return 0

    @property
    def last_layer_whole(self) -> bool:
        """Whether the last decoder layer does more than add to its residual stream."""
        return False

    @property
    def side(self) -> int:
        """Patches along one side of a square tile."""
        return int(self.config.vision_config.image_size) // self.patch_size

    @property
    def vision_layers(self) -> tuple[int, ...]:
        """Vision layers whose attention spans a whole tile, so that it may score importance."""
        return tuple(range(len(self.vision_attentions)))

    def decoder_attention(self, layer: int) -> nn.Module:
        """The attention module of a decoder layer."""
        attention: nn.Module = member(self.decoder_layers[layer], "self_attn")
        return attention

    @abstractmethod
    def images(self, call: Mapping[str, Any]) -> tuple[ImageGeometry, ...]:
        """Geometry of each image of one `get_image_features` call."""

    def images_of(self, call: Mapping[str, Any], encoded: Any) -> tuple[ImageGeometry, ...]:
        """The same where what the call gave is at hand; only that may tell how many tokens."""
        return self.images(call)

    def videos(self, call: Mapping[str, Any]) -> tuple[ImageGeometry, ...]:
        """Geometry of each video of one `get_video_features` call."""
        raise UnsupportedError(
            f"videos are not pruned on {self.model_type} models; give images, or leave the "
            "`with pruned(...)` block for this prompt"
        )

    def patch_order(
        self, images: Sequence[ImageGeometry], call: Mapping[str, Any]
    ) -> Tensor | None:
        """Where each patch, in tile order, stands in the encoder's sequence; None: where it is."""
        return None

    def gray_tiles(
        self, tower_inputs: Sequence[Tensor], images: Sequence[ImageGeometry], pixels: PixelScale
    ) -> tuple[Tensor, ...]:
        """Grey levels of every patch's pixels, uint8 (T, P, X) per run, in tile order.

        Args:
            tower_inputs: what the vision tower was given, in call order; here (T, C, H, W).
            images: geometry of the images encoded.
            pixels: how the processor normalised them.
        """
        tiles_TCHW = tower_inputs[0] if len(tower_inputs) == 1 else torch.cat(list(tower_inputs))
        return (gray_patches(tiles_TCHW, pixels.mean, pixels.std, self.patch_size),)

    def features(self, output: Any) -> list[Tensor]:
        """An encoding's projected features, (n, D) each; together they are all visual tokens.

        Whatever a token's features consist of may take more dimensions: (n, ..., D).
        """
        pooled = output.pooler_output
        flat = isinstance(pooled, Tensor) and pooled.dim() == 2
        return [pooled] if flat else list(pooled)

    def encoded(
        self, features: Sequence[Tensor], kind: str = "image"
    ) -> BaseModelOutputWithPooling:
        """The reverse of `features`: what `mm_encoder_outputs[kind]` holds."""
        output = BaseModelOutputWithPooling()
        output["pooler_output"] = self.stacked_features(features)
        return output

    def stacked_features(self, features: Sequence[Tensor]) -> Any:
        """One (N, D) tensor per image in the form that `mm_encoder_outputs` holds them."""
        return list(features)

    def blocks(self, call: Mapping[str, Any]) -> Tensor | None:
        """Blocks in which tokens see each other both ways, (B, S), -1 outside; None: no blocks.

        Args:
            call: the arguments of the base model's forward over a whole prompt.
        """
        return None

    def layer_mask(self, kind: str, blocks_BK: Tensor | None, **options: Any) -> Any:
        """The mask that transformers gives a decoder layer of this kind.

        Args:
            kind: the attention pattern, as `config.layer_types` spells it.
            blocks_BK: `blocks` of the tokens that the layer holds; None after the prompt.
            **options: the arguments of transformers' mask functions.
        """
        build: Any = LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING[kind]
        return build(**options)

    def require_every_patch(self) -> None:
        """UnsupportedError unless the features hold every patch and no CLS token (LLaVA's)."""
        selects = self.config.vision_feature_select_strategy
        wanted = "default" if self.num_prefix_tokens else "full"
        if selects != wanted:
            tower = self.config.vision_config.model_type
            raise UnsupportedError(
                f"this {self.model_type} model selects {selects!r} features of a {tower} tower, "
                f"which has {self.num_prefix_tokens} CLS tokens; only {wanted!r} gives one "
                "visual token per patch"
            )


def member(module: nn.Module, name: str) -> Any:
    """`module.name`; ModelError where the model is not built as its family is."""
    found = getattr(module, name, None)
    if found is None:
        raise ModelError(
            f"{type(module).__name__} has no part named {name!r}, where its family has one; "
            f"load it with AutoModelForImageTextToText; transformers {transformers.__version__} "
            "may be too old for it (some families need the newest)"
        )
    return found


def raster(height: int, width: int, view: int, device: torch.device | None = None) -> TokenGrid:
    """The grid of a full rectangle of tokens in raster order, no separators."""
    row_N = torch.arange(height, device=device).repeat_interleave(width)
    col_N = torch.arange(width, device=device).repeat(height)
    no_N = torch.zeros_like(row_N, dtype=torch.bool)
    return TokenGrid(torch.full_like(row_N, view), row_N, col_N, separator_N=no_N)


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
        return ImageGeometry(1, side * side, grid, pack=lambda map_TP: map_TP[0])
    nowhere = torch.tensor([-1], device=device)
    ended = TokenGrid(
        view_N=torch.cat([grid.view_N, torch.zeros_like(nowhere)]),
        row_N=torch.cat([grid.row_N, nowhere]),
        col_N=torch.cat([grid.col_N, nowhere]),
        separator_N=torch.cat([grid.separator_N, nowhere < 0]),
    )
    return ImageGeometry(1, side * side, ended, pack=_then_separator)


def _then_separator(map_TP: Tensor) -> Tensor:
    return torch.cat([map_TP[0], map_TP.new_zeros(1)])
