"""A small data set of questions about coloured pictures, in memory and as files."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from vflowopt_search.calibration.choice import from_dataset
from vflowopt_search.calibration.samples import CalibrationSet

NUM = 12


def picture(number: int) -> Image.Image:
    return Image.new("RGB", (10 + number, 8), (20 * number, 255 - 20 * number, 7))


def rows(num: int = NUM) -> list[dict[str, Any]]:
    """Rows whose image is a path relative to the folder of `write_images`."""
    return [
        {
            "question_id": f"q{number}",
            "image": f"images/{number}.png",
            "question": f"How many, {number}?",
            "answer": str(number),
            "category": "even" if number % 2 == 0 else "odd",
        }
        for number in range(num)
    ]


def write_images(folder: Path, num: int = NUM) -> None:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for number in range(num):
        picture(number).save(folder / "images" / f"{number}.png")


def write_jsonl(folder: Path, content: list[dict[str, Any]] | None = None) -> Path:
    write_images(folder)
    file = folder / "data.jsonl"
    lines = [json.dumps(row) for row in (rows() if content is None else content)]
    file.write_text("\n".join(lines) + "\n")
    return file


def table() -> Dataset:
    """The same rows with the images inside."""
    inside = [row | {"image": {"bytes": as_bytes(picture(n))}} for n, row in enumerate(rows())]
    texts = {name: Value("string") for name in rows()[0] if name != "image"}
    return Dataset.from_list(inside, features=Features({"image": ImageFeature(), **texts}))


def choose(dataset: Any, **options: Any) -> CalibrationSet:
    return from_dataset(dataset, **({"name": "test"} | options))


def as_bytes(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
