"""What a calibration set is made of, and its fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Sample:
    """One question about one or more images; images are RGB and decoded."""

    id: str
    prompt: str
    images: tuple[Image, ...]
    answer: str | None = None
    group: str | None = None


@dataclass(frozen=True)
class CalibrationSet:
    """Chosen samples; `sha256` is over their prompts and pixels, wherever they came from."""

    name: str
    samples: tuple[Sample, ...]
    sha256: str
    skipped: int = 0
    note: str = ""
    """What is worth saying about the choice: rows skipped and why, fewer samples than asked."""

    def __len__(self) -> int:
        return len(self.samples)


def fingerprint(samples: Sequence[Sample]) -> str:
    """SHA-256 over prompts and decoded pixels, in order; every part is preceded by its length."""
    digest = hashlib.sha256()
    for sample in samples:
        _feed(digest, sample.prompt.encode())
        _feed(digest, str(len(sample.images)).encode())
        for image in sample.images:
            _feed(digest, f"{image.mode} {image.width} {image.height}".encode())
            _feed(digest, image.tobytes())
    return digest.hexdigest()


def _feed(digest: hashlib._Hash, part: bytes) -> None:
    digest.update(len(part).to_bytes(8, "big"))
    digest.update(part)
