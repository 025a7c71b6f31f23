"""What the pruning engine must know of a model; adapters provide it.

Shape suffixes: B = batch rows, S = unpruned sequence, K = tokens held, T = tiles of a run,
P = patches of a tile, X = pixels of a patch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from vflowopt_search.importance.signals import ImageGeometry
from vflowopt_search.strategy import PixelScale


class Anatomy(Protocol):
    """Where the parts of a loaded model are, and how its images become visual tokens."""

    @property
    def model_type(self) -> str:
        """`config.model_type` of the model."""
        ...

    @property
    def model(self) -> Any:
        """The whole model, the one that users call."""
        ...

    @property
    def base(self) -> Any:
        """The model without its head: has `get_image_features` and calls the backbone."""
        ...

    @property
    def backbone(self) -> Any:
        """The text decoder; its `forward` is given `inputs_embeds`."""
        ...

    @property
    def decoder_layers(self) -> Sequence[nn.Module]:
        """The decoder layers, in the order in which they run."""
        ...

    @property
    def vision_tower(self) -> Any:
        """The vision encoder; its first argument is pixels."""
        ...

    @property
    def vision_attentions(self) -> Sequence[nn.Module]:
        """The attention module of every vision encoder layer."""
        ...

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens of the vision encoder before the patches (1 with a CLS token, else 0)."""
        ...

    @property
    def num_suffix_tokens(self) -> int:
        """Tokens of the vision encoder behind the patches of a tile."""
        ...

    @property
    def last_layer_whole(self) -> bool:
        """Whether the last decoder layer cannot be run for the last token only."""
        ...

    @property
    def vision_layers(self) -> tuple[int, ...]:
        """Vision layers whose attention spans a whole tile, so that it may score importance."""
        ...

    @property
    def image_token_id(self) -> int:
        """Token id of the placeholder of one visual token of an image."""
        ...

    @property
    def video_token_id(self) -> int | None:
        """Token id of the placeholder of one visual token of a video; None: videos are refused."""
        ...

    @property
    def refused_tokens(self) -> Mapping[int, str]:
        """Placeholder ids of inputs that are not pruned, and what they are in words."""
        ...

    def decoder_attention(self, layer: int) -> nn.Module:
        """The attention module of a decoder layer."""
        ...

    def images_of(self, call: Mapping[str, Any], encoded: Any) -> tuple[ImageGeometry, ...]:
        """Geometry of each image of one `get_image_features` call: its arguments, what it gave."""
        ...

    def videos(self, call: Mapping[str, Any]) -> tuple[ImageGeometry, ...]:
        """Geometry of each video of one `get_video_features` call, from the call's arguments."""
        ...

    def patch_order(
        self, images: Sequence[ImageGeometry], call: Mapping[str, Any]
    ) -> Tensor | None:
        """Where each patch, in tile order, stands in the encoder's sequence; None: where it is."""
        ...

    def gray_tiles(
        self, tower_inputs: Sequence[Tensor], images: Sequence[ImageGeometry], pixels: PixelScale
    ) -> tuple[Tensor, ...]:
        """Grey levels of every patch's pixels, uint8 (T, P, X) per run, in tile order."""
        ...

    def blocks(self, call: Mapping[str, Any]) -> Tensor | None:
        """Blocks in which tokens see each other both ways, (B, S), -1 outside; None: no blocks."""
        ...

    def layer_mask(self, kind: str, blocks_BK: Tensor | None, **options: Any) -> Any:
        """The mask that transformers gives a decoder layer of this kind."""
        ...
