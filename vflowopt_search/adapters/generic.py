"""A model that no family serves, by its structure alone; how its images are laid out is unknown.

Shape suffixes: N = visual tokens of one image, D = features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vflowopt_search.adapters.base import Adapter, Family, Parts, raster
from vflowopt_search.errors import ModelError
from vflowopt_search.importance.signals import ImageGeometry

PLACEHOLDERS = ("image_token_id", "image_token_index")
ENCODER = "get_image_features"


class GenericAdapter(Adapter):
    """Any model whose base encodes images and hands one sequence to a decoder with rotary places.

    It is never trusted: `selfcheck.require_checked` stands before every use.
    """

    family = Family(
        model_type="any other",
        inputs=("image", "several images"),
        positions=("original",),
        scores=("text_attention", "uniform", "random"),
        limits=(
            "by structure, after the self-check; where a token lies on its image is unknown, so "
            "that uniform takes tokens at equal distances of the prompt, and there is no received "
            "attention, no entropy, no recycling, and a row separator counts as any token"
        ),
    )
    knows_grid: ClassVar[bool] = False

    def __init__(self, model: nn.Module) -> None:
        """Raise ModelError, naming what is missing, where the structure is another."""
        self._features_are_stacked = False
        if getattr(model, "config", None) is None:
            raise ModelError("it has no configuration")
        super().__init__(model)

    def parts(self) -> Parts:
        """Walk the model: the innermost module that encodes images and holds a decoder."""
        encoders = [module for module in self.model.modules() if hasattr(module, ENCODER)]
        if not encoders:
            raise ModelError(f"no part of it has {ENCODER}")
        bases = [module for module in encoders if _decoders_in(module)]
        if not bases:
            raise ModelError(
                f"no decoder, with a list of `layers` and with `rotary_emb`, is where {ENCODER} is"
            )
        decoder = _text_decoder(_decoders_in(bases[-1]), self.model)
        return Parts(bases[-1], decoder, vision_tower=None, vision_attentions=())

    def check(self) -> None:
        """Raise ModelError where no placeholder is configured."""
        if not any(isinstance(getattr(self.config, name, None), int) for name in PLACEHOLDERS):
            raise ModelError(f"its configuration has no {' or '.join(PLACEHOLDERS)}")

    @property
    def image_token_id(self) -> int:
        """Token id of the placeholder, under either name that configurations give it."""
        ids = [getattr(self.config, name, None) for name in PLACEHOLDERS]
        return int(next(token for token in ids if isinstance(token, int)))

    @property
    def num_prefix_tokens(self) -> int:
        """Nothing is read inside the vision encoder."""
        return 0

    @property
    def last_layer_whole(self) -> bool:
        """Nothing is known of what its layers do."""
        return True

    def images(self, call: Mapping[str, Any]) -> tuple[ImageGeometry, ...]:
        """Encodes the images to count their tokens, for the arguments alone do not tell."""
        with torch.no_grad():
            return self.images_of(call, getattr(self.base, ENCODER)(**call))

    def images_of(self, call: Mapping[str, Any], encoded: Any) -> tuple[ImageGeometry, ...]:
        """One line of tokens per image."""
        return tuple(_line(len(one_ND), one_ND.device) for one_ND in self.features(encoded))

    def features(self, output: Any) -> list[Tensor]:
        """Projected features of each image, whatever the encoder wraps them in."""
        pooled = getattr(output, "pooler_output", output)
        self._features_are_stacked = isinstance(pooled, Tensor)
        if isinstance(pooled, Tensor):
            return [pooled] if pooled.dim() == 2 else list(pooled)
        if isinstance(pooled, tuple | list) and all(isinstance(one, Tensor) for one in pooled):
            return list(pooled)
        raise ModelError(
            f"{ENCODER} of this {self.model_type} model gives a {type(pooled).__name__}, in which "
            "no features are found; write an adapter for it (CONTRIBUTING.md shows how)"
        )

    def stacked_features(self, features: Sequence[Tensor]) -> Any:
        """As the encoder gave them: one tensor, or one per image."""
        alike = len({one.shape for one in features}) == 1
        return torch.stack(list(features)) if self._features_are_stacked and alike else [*features]


def _decoders_in(base: nn.Module) -> list[nn.Module]:
    return [
        module
        for module in base.modules()
        if isinstance(getattr(module, "layers", None), nn.ModuleList)
        and hasattr(module, "rotary_emb")
    ]


def _text_decoder(found: Sequence[nn.Module], model: nn.Module) -> nn.Module:
    """Of several decoders (vision encoders may rotate too) the one that reads token ids."""
    if len(found) == 1:
        return found[0]
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    text = [one for one in found if any(part is embeddings for part in one.modules())]
    if not text:
        raise ModelError(f"none of its {len(found)} decoders holds the token embeddings")
    return text[-1]


def _line(num_tokens: int, device: torch.device) -> ImageGeometry:
    """Tokens side by side in the order of the prompt."""
    return ImageGeometry(1, num_tokens, raster(1, num_tokens, 0, device), torch.flatten)
