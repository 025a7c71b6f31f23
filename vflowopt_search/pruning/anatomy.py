"""What the pruning engine must know of a model; adapters provide it.

Shape suffixes: T = tiles the vision tower sees, C = channels, H, W = pixels of a tile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import nn

from vflowopt_search.importance.signals import ImageGeometry


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
        """The vision encoder; its first argument is the tiles' pixels (T, C, H, W)."""
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
    def patch_size(self) -> int:
        """Side of the square of pixels that feeds one patch."""
        ...

    @property
    def image_token_id(self) -> int:
        """Token id of the placeholder of one visual token."""
        ...

    @property
    def refused_tokens(self) -> Mapping[int, str]:
        """Placeholder ids of inputs that are not pruned, and what they are in words."""
        ...

    def decoder_attention(self, layer: int) -> nn.Module:
        """The attention module of a decoder layer."""
        ...

    def images(self, call: Mapping[str, Any]) -> tuple[ImageGeometry, ...]:
        """Geometry of each image of one `get_image_features` call, from the call's arguments."""
        ...
