"""From what was typed to a model and its processor: the shipped one, a checkpoint, or a config."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

SHIPPED = "testbed"
"""Name of the model that comes with the package."""


@dataclass(frozen=True)
class ModelSource:
    """Which model to load, and how.

    Args:
        model: hub name, folder, or `testbed`.
        device: `auto` (a GPU when there is one), `cpu`, `cuda`, `cuda:1`.
        dtype: `auto`, `float32`, `float16`, `bfloat16`; auto is float32 on the CPU, where half
            precision is slow, and the checkpoint's own elsewhere.
        trust_remote_code: run code that comes with the checkpoint.
        random_init: build from this configuration file with random weights; `model` then names
            the processor, and `testbed` stands for the configuration's folder.
    """

    model: str = SHIPPED
    device: str = "auto"
    dtype: str = "auto"
    trust_remote_code: bool = False
    random_init: Path | None = None

    @property
    def name(self) -> str:
        """What the model is called in files and tables."""
        return self.model if self.random_init is None else f"random {self.random_init}"


def load(source: ModelSource) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The model in eval mode on its device, and its processor.

    Raises:
        ModelError: the device, the precision, the model or the processor cannot be had.
    """
    from vflowopt_search.adapters import loading

    place = _place(source)
    if source.random_init is not None:
        model = loading.random_init(source.random_init, **place)
        given = source.random_init
        folder = given if given.is_dir() else given.parent
        beside = source.model if source.model != SHIPPED else str(folder)
        return model, loading.load_processor(beside, trust_remote_code=source.trust_remote_code)
    if source.model == SHIPPED:
        from vflowopt_search import testbed

        return testbed.load_model(**place), testbed.load_processor()
    trusts = source.trust_remote_code
    model = loading.load_model(source.model, trust_remote_code=trusts, **place)
    return model, loading.load_processor(source.model, trust_remote_code=trusts)


def _place(source: ModelSource) -> dict[str, Any]:
    """`device` and `dtype` with auto replaced by what suits this machine."""
    import torch

    from vflowopt_search.adapters.loading import parse_device

    best = "cuda" if torch.cuda.is_available() else "cpu"
    device = best if source.device == "auto" else source.device
    half_is_slow = device == "cpu" or source.model == SHIPPED
    dtype = "float32" if source.dtype == "auto" and half_is_slow else source.dtype
    parse_device(device)
    return {"device": device, "dtype": dtype}
