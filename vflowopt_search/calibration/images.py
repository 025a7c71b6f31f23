"""Pictures as data sets hold them (a PIL image, bytes, a path), decoded to upright 8-bit RGB."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from vflowopt_search.errors import CalibrationError

# what PIL raises for damaged files, by format
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, struct.error)

PICTURES = {".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff"}
PICTURES |= {".pgm", ".webp"}


def is_picture(value: Any) -> bool:
    """Whether a value is one picture, by its name or type, and no video and no list."""
    if isinstance(value, Mapping):
        value = value.get("path") or value.get("bytes")
    if isinstance(value, str | Path):
        return Path(value).suffix.lower() in PICTURES
    return not isinstance(value, list | tuple)


def open_image(value: Any, folder: Path | None = None) -> Image.Image:
    """Decode one picture, turned upright as its EXIF says; a relative path starts at `folder`.

    Accepts a PIL image, bytes, a path, or the mapping {"bytes": ..., "path": ...} of `datasets`.
    Raises `CalibrationError` when it cannot be read.
    """
    try:
        with warnings.catch_warnings():
            # a large picture is welcome; one past PIL's hard limit is still refused
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            upright = _decoded(value, folder)
        if 0 in upright.size:
            raise ValueError(f"it has {upright.width} x {upright.height} pixels")
        return to_rgb(upright)
    except Image.DecompressionBombError as error:
        raise CalibrationError(
            f"{_name(value)} is too large to decode ({error}); shrink it"
        ) from error
    except _DAMAGED as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CalibrationError(
            f"{_name(value)} is no readable image ({reason}); check or convert it"
        ) from error


def _decoded(value: Any, folder: Path | None) -> Image.Image:
    if isinstance(value, Image.Image):
        return ImageOps.exif_transpose(value)
    with Image.open(_file(value, folder)) as image:
        return ImageOps.exif_transpose(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture as 8-bit RGB; 16-bit and 32-bit grey is scaled down, transparency is dropped."""
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bits(np.asarray(image)), mode="L").convert("RGB")
    if image.mode == "P":  # a palette may hold transparency that only RGBA can take
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(grey_HW: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Grey values to 0..255: 16-bit ones when they exceed 255, fractions of 1 when none does."""
    fractions = grey_HW.dtype.kind == "f" and grey_HW.max(initial=0.0) <= 1
    grey_HW = grey_HW.astype(np.float64) * (255 if fractions else 1)
    if grey_HW.max(initial=0.0) > 255:
        grey_HW = grey_HW / 257  # 65535 / 255
    return np.clip(np.rint(grey_HW), 0, 255).astype(np.uint8)


def _file(value: Any, folder: Path | None) -> BytesIO | Path:
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes | bytearray | memoryview):
        return BytesIO(value)
    if not isinstance(value, str | Path):
        raise ValueError(f"a {type(value).__name__} is neither image, bytes nor path")
    if "://" in str(value):
        raise ValueError("an address on the network; download it and give the path")
    path = Path(value).expanduser()
    return path if path.is_absolute() or folder is None else folder / path


def _name(value: Any) -> str:
    if isinstance(value, Mapping):
        value = value.get("path") or "an image"
    return str(value) if isinstance(value, str | Path) else "an image"
