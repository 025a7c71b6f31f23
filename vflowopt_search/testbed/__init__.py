"""A small trained multimodal model that ships with the package and really sees.

`load_model()` and `load_processor()` need no network; see `MODEL_CARD.md` beside this file.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import LlavaOnevisionForConditionalGeneration, ProcessorMixin

__all__ = ["WEIGHTS_FOLDER", "load_model", "load_processor"]

WEIGHTS_FOLDER = Path(__file__).parent / "weights"


def load_model(
    device: str = "cpu", dtype: str = "float32"
) -> LlavaOnevisionForConditionalGeneration:
    """The trained model in eval mode; `dtype` is the name of a torch dtype."""
    import torch
    from transformers import LlavaOnevisionForConditionalGeneration

    from vflowopt_search.adapters.quiet import without_bars
    from vflowopt_search.testbed.integrity import check_weights

    check_weights(WEIGHTS_FOLDER)
    with without_bars():
        model = LlavaOnevisionForConditionalGeneration.from_pretrained(
            WEIGHTS_FOLDER, dtype=getattr(torch, dtype)
        )
    model.to(device)  # type: ignore[arg-type]
    return model


def load_processor() -> ProcessorMixin:
    """The model's processor: images to tiles, text to word tokens, with a chat template."""
    from vflowopt_search.adapters.loading import load_processor as load_processor_of

    return load_processor_of(WEIGHTS_FOLDER)
