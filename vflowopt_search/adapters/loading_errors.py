"""What transformers raises for a checkpoint, told as one sentence."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from safetensors import SafetensorError

from vflowopt_search.adapters.hub import Source, hub_errors
from vflowopt_search.adapters.quiet import without_bars
from vflowopt_search.errors import ModelError, first_line
from vflowopt_search.memory_errors import is_out_of_memory

_log = logging.getLogger(__name__)


@contextmanager
def named(source: Source) -> Iterator[None]:
    """Whatever transformers raises, told as one sentence that names the checkpoint.

    Only calls of transformers stand in such a block: it takes any mistake for the checkpoint's.
    Nor do bars show that files at hand are read.
    """
    if source.is_folder and not (Path(source.name) / "config.json").is_file():
        raise ModelError(
            f"{source.name} holds no config.json; give the folder that save_pretrained wrote"
        )
    try:
        with without_bars() if source.is_folder else nullcontext():
            yield
    except SafetensorError as error:
        raise ModelError(
            f"{source.name}: the safetensors file is damaged ({error}); fetch it again"
        ) from error
    except _loading_errors() as error:
        if is_out_of_memory(error):  # which says nothing about the checkpoint
            raise
        _log.debug("%s cannot be loaded", source.name, exc_info=error)
        raise ModelError(_explain(source, error)) from error


def _loading_errors() -> tuple[type[Exception], ...]:
    """What loading raises for files that are absent, malformed, damaged or of another kind."""
    return (TypeError, ValueError, KeyError, RuntimeError, ImportError, *hub_errors())


def _explain(source: Source, error: BaseException) -> str:
    reason = first_line(error)
    is_config = "`model_type` key" not in reason and not isinstance(error, OSError)
    if Path(source.name).is_file() and not is_config:
        return f"{source.name} is no configuration; give a model's config.json or its folder"
    if source.local_only and not source.is_folder and isinstance(error, OSError):
        return (
            f"{source.name} is neither a folder here nor in the hub's local cache, and the hub "
            f"does not answer; give a checkpoint's folder, or load it once with network"
        )
    if "trust_remote_code" in str(error):
        return (
            f"{source.name} runs code of its own; read that code, then pass trust_remote_code=True"
        )
    if "torchvision" in str(error).lower():
        return (
            f"{source.name} needs torchvision, which is absent or broken here ({reason}); "
            f"install a torchvision made for this torch"
        )
    return f"{source.name} cannot be loaded: {reason}"
