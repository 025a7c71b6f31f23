"""The weights that are loaded are the weights that were measured."""

from __future__ import annotations

import hashlib
from pathlib import Path

from vflowopt_search.errors import ModelError

WEIGHTS_FILE = "model.safetensors"
HASH_FILE = "SHA256"


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_weights(folder: Path) -> None:
    """Refuse weights that are missing or differ from the hash written beside them."""
    path = folder / WEIGHTS_FILE
    if not path.is_file() or not (folder / HASH_FILE).is_file():
        raise ModelError(
            f"{folder} must hold {WEIGHTS_FILE} and {HASH_FILE}, but one is missing; "
            f"reinstall vflowopt-search or train with `python -m vflowopt_search.testbed.train`"
        )
    expected = (folder / HASH_FILE).read_text(encoding="utf-8").split()[0]
    found = file_sha256(path)
    if found != expected:
        raise ModelError(
            f"{path} has SHA-256 {found} but {HASH_FILE} beside it says {expected}; "
            f"reinstall vflowopt-search or train with `python -m vflowopt_search.testbed.train`"
        )
