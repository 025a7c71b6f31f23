"""From a name to a model and its processor: the shipped one, a checkpoint, or a config."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

SHIPPED = "testbed"
"""Name of the model that comes with the package."""
_RANDOM = "random "


@dataclass(frozen=True)
class ModelSource:
    """Which model to load, and how.

    Args:
        model: hub name, folder, or `testbed`; None is the shipped one, or with `random_init` the
            configuration's folder.
        device: `auto` (a GPU when there is one), `cpu`, `cuda`, `cuda:1`.
        dtype: `auto`, `float32`, `float16`, `bfloat16`; auto is float32 on the CPU, where half
            precision is slow, and the checkpoint's own elsewhere.
        trust_remote_code: run code that comes with the checkpoint.
        random_init: build from this configuration file with random weights; `model` then names
            the processor.
    """

    model: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    trust_remote_code: bool = False
    random_init: Path | None = None

    @property
    def name(self) -> str:
        """What the model is called in files and tables."""
        return self.checkpoint if self.random_init is None else f"{_RANDOM}{self.random_init}"

    @property
    def checkpoint(self) -> str:
        """Where the processor comes from, and the weights unless they are random."""
        if self.model is not None:
            return self.model
        return SHIPPED if self.random_init is None else folder_of(self.random_init)

    @property
    def is_alone(self) -> bool:
        """Whether nothing is named but a configuration, whose folder may hold a processor."""
        return self.random_init is not None and self.checkpoint == folder_of(self.random_init)


def folder_of(config: Path) -> str:
    """The folder of a configuration, which may be that folder itself."""
    return str(config if config.is_dir() else config.parent)


def random_config(name: str) -> Path | None:
    """The configuration of a model with random weights, by its `ModelSource.name`; else None."""
    return Path(name.removeprefix(_RANDOM)) if name.startswith(_RANDOM) else None


def load(source: ModelSource) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The model in eval mode on its device, and its processor.

    Raises:
        ModelError: the device, the precision, the model or the processor cannot be had.
    """
    return load_model(source), load_processor(source)


def load_model(source: ModelSource) -> PreTrainedModel:
    """The model alone, in eval mode on its device.

    Raises:
        ModelError: the device, the precision or the model cannot be had; or the checkpoint that is
            to give the processor is of another family than the configuration.
    """
    from vflowopt_search.adapters import loading

    place = _place(source)
    if source.random_init is not None:
        if not source.is_alone:
            _require_kin(source, source.random_init)
        return loading.random_init(source.random_init, **place)
    if source.checkpoint == SHIPPED:
        from vflowopt_search import testbed

        return testbed.load_model(**place)
    return loading.load_model(
        source.checkpoint, trust_remote_code=source.trust_remote_code, **place
    )


def load_processor(source: ModelSource) -> ProcessorMixin:
    """The model's processor.

    Raises:
        ModelError: there is none, or it cannot be built here.
    """
    from vflowopt_search.adapters import loading

    if source.checkpoint == SHIPPED:
        from vflowopt_search import testbed

        return testbed.load_processor()
    if source.random_init is not None and source.is_alone:
        loading.require_processor_beside(source.random_init)
    return loading.load_processor(source.checkpoint, trust_remote_code=source.trust_remote_code)


def _require_kin(source: ModelSource, config: Path) -> None:
    """Refuse random weights with the processor of another family."""
    from vflowopt_search import testbed
    from vflowopt_search.adapters import loading

    loading.require_kin(
        config,
        testbed.WEIGHTS_FOLDER if source.checkpoint == SHIPPED else source.checkpoint,
        called=source.checkpoint,
        trust_remote_code=source.trust_remote_code,
    )


def _place(source: ModelSource) -> dict[str, Any]:
    """`device` and `dtype` with auto replaced by what suits this machine."""
    import torch

    from vflowopt_search.adapters.loading import parse_device

    best = "cuda" if torch.cuda.is_available() else "cpu"
    device = best if source.device == "auto" else source.device
    half_is_slow = device == "cpu" or source.name == SHIPPED
    dtype = "float32" if source.dtype == "auto" and half_is_slow else source.dtype
    parse_device(device)
    return {"device": device, "dtype": dtype}
