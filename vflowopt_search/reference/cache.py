"""Tensors kept on disk: written whole or not at all, checked before they are trusted."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vflowopt_search.errors import CacheError

CHUNK = 1 << 20
DRAFTS = ".writing-"
"""How the folder of a draft begins."""


def default_cache() -> Path:
    """`$VFLOWOPT_SEARCH_CACHE`, else `vflowopt-search` in the user's cache folder."""
    named = os.environ.get("VFLOWOPT_SEARCH_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vflowopt-search"


def read_tensors(path: Path, key: Mapping[str, str]) -> dict[str, Tensor] | None:
    """The tensors stored at `path` if they are whole and were stored under this very `key`.

    Args:
        path: a safetensors file; a JSON file of the same name beside it holds key and checksum.
        key: what the tensors depend on (model, samples, dtype, ...).

    Returns:
        The tensors, or None where nothing (or nothing to be trusted) is there: build it again.
    """
    label = path.with_suffix(".json")
    try:
        stored = json.loads(label.read_text())
        if stored["key"] != dict(key) or stored["sha256"] != file_sha256(path):
            return None
        tensors: dict[str, Tensor] = load_file(path)
        os.utime(path)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None
    return tensors


def write_tensors(path: Path, tensors: Mapping[str, Tensor], key: Mapping[str, str]) -> None:
    """Store `tensors` for `read_tensors`.

    Raises:
        CacheError: the folder cannot be written.
    """
    with writing(path) as draft:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, draft)
        label = draft.with_suffix(".json")
        label.write_text(json.dumps({"key": dict(key), "sha256": file_sha256(draft)}))
        draft.replace(path)
        label.replace(path.with_suffix(".json"))


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A draft in a folder beside `path` that is gone when the block ends.

    Raises:
        CacheError: the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=DRAFTS) as folder:
            yield Path(folder) / path.name
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error  # not the path once more
        raise CacheError(
            f"the cache folder {path.parent} cannot be written ({reason}); make room there, let "
            "it hold less with --cache-gb, or name another one with --cache"
        ) from error


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
