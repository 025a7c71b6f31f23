"""Tensors on disk: what was written under this very key, whole, or nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vflowopt_search.reference.cache import read_tensors, write_tensors

KEY = {"model": "a", "samples": "b"}
TENSORS = {"x": torch.arange(5.0), "y": torch.ones(2, 3, dtype=torch.int64).T}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    written = tmp_path / "folder" / "tensors.safetensors"
    write_tensors(written, TENSORS, KEY)
    return written


def test_the_same_key_reads_the_same_tensors(path: Path) -> None:
    found = read_tensors(path, dict(reversed(KEY.items())))
    assert found is not None and found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)


@pytest.mark.parametrize("other", [KEY | {"model": "c"}, KEY | {"more": "d"}, {"model": "a"}])
def test_another_key_reads_nothing(path: Path, other: dict[str, str]) -> None:
    assert read_tensors(path, other) is None


@pytest.mark.parametrize("label", ["{}", "[]", "", "null"])
def test_a_torn_label_reads_nothing(path: Path, label: str) -> None:
    path.with_suffix(".json").write_text(label)
    assert read_tensors(path, KEY) is None
