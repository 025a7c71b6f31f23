"""Real handwritten digits, split by drawing into train, validation and test.

The drawings are the 1,797 of the UCI "Optical Recognition of Handwritten Digits" test set
(E. Alpaydin and C. Kaynak, 1998, CC BY 4.0), see `data/README.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import as_file, files
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "validation", "test"]

DIGIT_MAX = 16  # grey level of full ink in the data file
_SPLIT_OF_REMAINDER: tuple[Split, ...] = ("validation", "test", "test") + ("train",) * 7


@lru_cache(maxsize=1)
def load_digits() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """All drawings, shape (1797, 8, 8) with values 0 to 16, and their labels, shape (1797,)."""
    file = files("vflowopt_search.testbed") / "data" / "digits.npz"
    with as_file(file) as path, np.load(path) as archive:
        return archive["images"], archive["labels"]


@lru_cache(maxsize=3)
def split_indices(split: Split) -> Mapping[int, NDArray[np.int64]]:
    """Rows of `load_digits` that belong to `split`, by label; the three splits are disjoint."""
    labels = load_digits()[1]
    rows = np.arange(len(labels))
    member = np.array(_SPLIT_OF_REMAINDER)[rows % len(_SPLIT_OF_REMAINDER)] == split
    return MappingProxyType({d: rows[member & (labels == d)] for d in range(10)})


@lru_cache(maxsize=64)
def _interpolation(size: int) -> NDArray[np.float32]:
    """Matrix of shape (size, 8) that resamples eight pixels to `size` bilinearly."""
    position = np.clip((np.arange(size) + 0.5) * 8 / size - 0.5, 0, 7)
    distance = np.abs(position[:, None] - np.arange(8)[None, :])
    weights: NDArray[np.float32] = np.clip(1 - distance, 0, 1).astype(np.float32)
    return weights


def digit_ink(row: int, size: int) -> NDArray[np.float32]:
    """Drawing `row` resampled to (size, size): opacity of the ink, 0 to 1."""
    drawing = load_digits()[0][row].astype(np.float32) / DIGIT_MAX
    resample = _interpolation(size)
    ink: NDArray[np.float32] = np.clip(
        1.3 * _product(_product(resample, drawing), resample.T), 0, 1
    )
    return ink


def _product(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
    """`left @ right`, term by term and rounded to fp32 after each, the same on every CPU.

    The BLAS behind `@` adds in another order on another CPU: then pixels differ by one level, and
    with them the fingerprint of a data set.
    """
    total = np.zeros((left.shape[0], right.shape[1]), dtype=np.float32)
    for column, row in zip(left.T.astype(np.float64), right.astype(np.float64), strict=True):
        total = (total + column[:, None] * row).astype(np.float32)
    return total
