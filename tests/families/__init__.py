"""Every supported family as a tiny random model, built offline; the contract tests run over them.

A module of this package lists its variants in `FAMILIES`; nothing else has to be registered.
"""

from __future__ import annotations

import importlib
import pkgutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from packaging.version import Version
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    BatchFeature,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)

from tests.tiny import noise_image, randomise, ready

# transformers annotates these in part only
_AutoModel: Any = AutoModelForImageTextToText

QUESTIONS = ("What color is the cat?", "describe the picture on the left", "how many")


@dataclass(frozen=True)
class TinyFamily:
    """One variant of one family: a model type with one kind of input.

    Attributes:
        name: unique; the model type, with the kind of input behind a dash where there are several.
        model_type: `config.model_type`.
        config: makes the configuration of a tiny model.
        inputs: makes three ragged, left-padded prompts in a dtype.
        processor: makes the processor; None where it cannot be built without torchvision.
        prompt: text of a prompt with one image, `{question}` in it.
        tweak: changes a random model after its weights were drawn, None if nothing needs it.
        new_token_type: token type of generated tokens, where prompts have token types.
        fp64: largest difference between removing and masking in fp64.
        newest_only: an older transformers builds the model in another way, which is refused.
    """

    name: str
    model_type: str
    config: Callable[[], PreTrainedConfig]
    inputs: Callable[[torch.dtype], BatchFeature]
    processor: Callable[[], ProcessorMixin] | None
    prompt: str
    tweak: Callable[[Any], None] | None = None
    new_token_type: int = 0
    fp64: float = 1e-9
    newest_only: bool = False

    def model(
        self, *, attn: str = "sdpa", dtype: torch.dtype = torch.float32, seed: int = 0
    ) -> PreTrainedModel:
        """A lively random model in eval mode; what it says depends on the seed alone."""
        model: PreTrainedModel = _AutoModel.from_config(self.config(), attn_implementation=attn)
        randomise(model, seed)
        if self.tweak is not None:
            self.tweak(model)
        if dtype == torch.float64:
            model.set_experts_implementation("eager")  # the grouped product has no fp64
        return ready(model, dtype)


def ragged(
    processor: ProcessorMixin, prompts: Sequence[str], images: Sequence[Sequence[Image.Image]]
) -> BatchFeature:
    """A left-padded batch of these prompts, made by the family's own processor."""
    made: Any = processor
    with warnings.catch_warnings():
        # InternVL's processor of transformers 5.17 hands a tensor to numpy
        warnings.filterwarnings("ignore", "__array_wrap__", DeprecationWarning)
        batch: BatchFeature = made(
            text=list(prompts),
            images=[list(row) for row in images],
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
    return batch


def noise_images(sizes: Sequence[tuple[int, int]], seed: int = 5) -> list[Image.Image]:
    """Noise pictures of these (width, height)."""
    generator = torch.Generator().manual_seed(seed)
    return [noise_image(size, generator) for size in sizes]


def _collect() -> dict[str, TinyFamily]:
    found: dict[str, TinyFamily] = {}
    for module in pkgutil.iter_modules(__path__):
        for family in _families_of(f"{__name__}.{module.name}"):
            assert family.name not in found, family.name
            if not (family.newest_only and older_transformers()):
                found[family.name] = family
    return dict(sorted(found.items()))


def _families_of(module: str) -> Sequence[TinyFamily]:
    """The variants of one module; none where an older transformers lacks its classes."""
    try:
        families: Sequence[TinyFamily] = getattr(importlib.import_module(module), "FAMILIES", ())
    except ImportError as error:
        if not (older_transformers() and (error.name or "").startswith("transformers")):
            raise
        return ()
    return families


def older_transformers() -> bool:
    """Whether transformers is older than the version that constraints.txt pins."""
    lines = (Path(__file__).parents[2] / "constraints.txt").read_text().splitlines()
    [pinned] = [line for line in lines if line.startswith("transformers==")]
    return Version(transformers.__version__) < Version(pinned.partition("==")[2])


def tiny(name: str) -> TinyFamily:
    """The variant called `name`."""
    return all_families()[name]


def all_families() -> dict[str, TinyFamily]:
    """All variants by name."""
    if not _FOUND:
        _FOUND.update(_collect())
    return _FOUND


_FOUND: dict[str, TinyFamily] = {}
