"""What a strategy keeps of some calibration images: values, and the folder that holds them.

Views are what the tokens lie on: the whole image, its mosaic, a tile, a frame of a video. Values
per cell are in raster order of the view's rows and columns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal, Self
from zlib import crc32

from PIL import Image
from pydantic import Field, ValidationError, model_validator

from vflowopt_search.documents import Value, complaint, replace_atomically
from vflowopt_search.errors import StudyError, VFlowOptError
from vflowopt_search.strategy import Strategy

FORMAT: Final = "vflowopt-overlays/1"
FILE = "overlays.json"
Role = Literal["worst", "median", "best"]
NO_TOKEN = -1
"""`survived` of a cell without a token."""
NOT_MERGED = -1
"""`group` of a token that was not merged."""


class OverlayPart(Value):
    """Anything in an overlays file; a wrong value is a StudyError."""

    refusal: ClassVar[type[VFlowOptError]] = StudyError


class View(OverlayPart):
    """Tokens in rows and columns over one picture."""

    name: str = ""
    """What the view shows of its image, in words; empty in records of before it was written."""
    rows: Annotated[int, Field(ge=1)]
    cols: Annotated[int, Field(ge=1)]
    picture: str | None
    """File name; null where it is not known which part of the image the tokens see."""
    survived: tuple[int, ...]
    """Per cell, how many stages its token survived; `NO_TOKEN` where there is none."""
    group: tuple[int, ...]
    """Per cell, number of the group its token was merged with; `NOT_MERGED` otherwise."""
    anchors: tuple[int, ...]
    """Cells whose token stands for its whole group."""
    importance: tuple[float | None, ...] | None
    """Per cell, the score of the first stage; null where nothing was scored before the decoder."""
    entropy: tuple[float | None, ...] | None
    """Per cell, entropy of the patch in bits; null where pixels are not known."""

    @model_validator(mode="after")
    def _one_value_per_cell(self) -> Self:
        cells = self.rows * self.cols
        for name in ("survived", "group", "importance", "entropy"):
            values = getattr(self, name)
            if values is not None and len(values) != cells:
                raise ValueError(
                    f"{name} has {len(values)} values for {self.rows} x {self.cols} cells; "
                    f"record the overlays again"
                )
        return self


class SampleOverlay(OverlayPart):
    """One calibration sample under the strategy."""

    sample: Annotated[int, Field(ge=0)]
    """Number in the calibration set."""
    id: str
    prompt: str
    role: Role
    divergence: float
    visual_tokens: int
    stage_tokens: tuple[int, ...]
    """Tokens alive after each stage."""
    stage_elsewhere: tuple[int, ...]
    """How many of them lie on no picture: row separators, mostly."""
    tokens_per_layer: tuple[int, ...]
    views: tuple[View, ...]
    all_views: int
    """How many views the sample has; only some are kept of many."""

    @property
    def mean_retained(self) -> float:
        """Share of the visual tokens alive, averaged over decoder layers."""
        kept = sum(self.tokens_per_layer) / len(self.tokens_per_layer)
        return kept / self.visual_tokens


class Thumbnail(OverlayPart):
    """A calibration sample in small."""

    sample: Annotated[int, Field(ge=0)]
    id: str
    prompt: str
    picture: str


class Overlays(OverlayPart):
    """What was recorded of one strategy; `pictures` are in the same folder."""

    format: Literal["vflowopt-overlays/1"] = FORMAT
    strategy_sha256: str
    """See `fingerprint`."""
    stages: tuple[int, ...]
    """Decoder layer of each stage."""
    samples: tuple[SampleOverlay, ...]
    thumbnails: tuple[Thumbnail, ...]
    note: str = ""
    """What is missing, and why."""


Pictures = Mapping[str, bytes]
"""File name to an encoded picture."""


def encoded(picture: Image.Image, longest: int) -> tuple[str, bytes]:
    """A picture as WebP, shrunk to `longest` pixels a side, under the name of its content."""
    small = picture.convert("RGB")
    small.thumbnail((longest, longest))
    buffer = BytesIO()
    small.save(buffer, "WEBP", quality=85, method=4)
    content = buffer.getvalue()
    return f"{crc32(content):08x}{len(content):x}.webp", content


def fingerprint(strategy: Strategy) -> str:
    """SHA-256 of what a strategy does, whatever it is called and wherever it comes from."""
    bare = strategy.model_copy(update={"name": "any", "provenance": None, "budget": None})
    return hashlib.sha256(bare.to_json().encode()).hexdigest()


def save_overlays(overlays: Overlays, pictures: Pictures, folder: Path) -> None:
    """Write the folder; a reader meanwhile sees the old record or the new one, whole.

    Raises:
        OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in pictures.items():
        replace_atomically(folder / name, content)
    replace_atomically(folder / FILE, overlays.model_dump_json().encode() + b"\n")
    for old in folder.glob("*.webp"):
        if old.name not in pictures:
            old.unlink()


def load_overlays(folder: Path) -> Overlays | None:
    """What a folder holds; None when there is no record.

    Raises:
        StudyError: the record is broken or of another version.
    """
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        return Overlays.model_validate_json(file.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        told = complaint(error) if isinstance(error, ValidationError) else "it is not UTF-8 text"
        raise StudyError(
            f"{file} cannot be read: {told}; remove the folder {folder} and record it again"
        ) from None
