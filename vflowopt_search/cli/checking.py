"""A self-check once per model and versions: that it passed is remembered in the cache folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vflowopt_search import __version__
from vflowopt_search.documents import replace_atomically
from vflowopt_search.errors import CacheError

if TYPE_CHECKING:
    from torch import nn

    from vflowopt_search.adapters.base import Adapter
    from vflowopt_search.selfcheck.report import Report

FOLDER = "self-checks"
CHECKING = "checking that pruning is correct on this model"
"""What that phase is called."""


def check_once(
    model: nn.Module,
    processor: Any,
    cache: Path | None,
    begin: Callable[[], object] = lambda: None,
) -> Report | None:
    """Run the self-check unless a model of this configuration passed it here before.

    Args:
        model: a loaded model.
        processor: its processor.
        cache: folder in which it is remembered; None remembers nothing.
        begin: called before it is run.

    Returns:
        What was found; None where it was remembered.

    Raises:
        UnsupportedError: the model fails; names the check and the figure.
        CacheError: the cache folder cannot be written.
    """
    from vflowopt_search.adapters.registry import adapter_for
    from vflowopt_search.selfcheck.check import check_model, trust

    path = None if cache is None else cache / FOLDER / f"{_key(adapter_for(model))}.json"
    if path is not None and path.is_file():
        trust(model)
        return None
    begin()
    report = check_model(model, processor)
    report.require()
    if path is not None:
        _write(path, json.dumps(report.to_plain(), indent=2) + "\n")
    return report


def _key(adapter: Adapter) -> str:
    """All that a self-check depends on but the weights, which take longer to read than to check."""
    import torch
    import transformers

    from vflowopt_search.adapters.registry import config_sha256

    parts = {
        "config": config_sha256(adapter.config),
        "adapter": f"{type(adapter).__module__}.{type(adapter).__qualname__}",
        "dtype": str(adapter.backbone.dtype),
        "attention": str(adapter.backbone.config._attn_implementation),
        "device": str(adapter.backbone.device.type),
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "vflowopt-search": __version__,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_atomically(path, text)
    except OSError as error:
        raise CacheError(
            f"the cache folder {path.parent} cannot be written ({error.strerror}); "
            "make room there, or name another one with --cache"
        ) from error
