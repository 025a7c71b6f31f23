"""Pictures of every mode become upright 8-bit RGB, or a sentence."""

from __future__ import annotations

import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.calibration.data import as_bytes
from vflowopt_search.calibration.images import open_image
from vflowopt_search.errors import CalibrationError

RED, BLUE = (255, 0, 0), (0, 0, 255)


def picture(left: tuple[int, int, int] = RED, right: tuple[int, int, int] = BLUE) -> Image.Image:
    """Twelve by six pixels, the left half in one colour and the right half in another."""
    image = Image.new("RGB", (12, 6), left)
    image.paste(Image.new("RGB", (6, 6), right), (6, 0))
    return image


def test_every_form_of_the_same_picture(tmp_path: Path) -> None:
    expected = picture()
    data = as_bytes(expected)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.png").write_bytes(data)
    forms: list[Any] = [
        expected,
        data,
        {"bytes": data, "path": None},
        {"bytes": None, "path": str(tmp_path / "sub" / "a.png")},
        {"bytes": data, "path": "no/such/file.png"},
        "sub/a.png",
        str(tmp_path / "sub" / "a.png"),
        Path("sub/a.png"),
    ]
    for form in forms:
        opened = open_image(form, tmp_path)
        assert opened.mode == "RGB"
        assert opened.tobytes() == expected.tobytes(), form


@pytest.mark.parametrize("mode", ["RGBA", "P", "CMYK"])
def test_colour_survives(mode: str) -> None:
    kind = "TIFF" if mode == "CMYK" else "PNG"
    opened = open_image(as_bytes(picture().convert(mode), kind))
    assert (opened.mode, opened.size) == ("RGB", (12, 6))
    assert (opened.getpixel((0, 0)), opened.getpixel((11, 5))) == (RED, BLUE)


def test_a_transparent_palette_is_no_warning() -> None:
    data = as_bytes(picture().convert("P"), transparency=bytes([0, 128, 255]))
    assert open_image(data).mode == "RGB"


@pytest.mark.parametrize(
    ("mode", "black", "white"),
    [("1", 0, 1), ("L", 0, 255), ("LA", (0, 9), (255, 9)), ("I;16", 0, 65535), ("I", 0, 65535)],
)
def test_grey_of_any_width(mode: str, black: Any, white: Any) -> None:
    image = Image.new(mode, (4, 4), black)
    image.paste(Image.new(mode, (2, 4), white), (0, 0))
    opened = open_image(image)
    assert (opened.getpixel((0, 0)), opened.getpixel((3, 3))) == ((255,) * 3, (0,) * 3)


def test_wide_grey_keeps_its_middle() -> None:
    middle = np.full((3, 3), 32896, np.uint16)  # 128 * 257
    assert open_image(Image.fromarray(middle)).getpixel((1, 1)) == (128, 128, 128)
    narrow = np.full((3, 3), 200, np.int32)
    assert open_image(Image.fromarray(narrow)).getpixel((1, 1)) == (200, 200, 200)
    fractions = np.full((3, 3), 0.5, np.float32)
    assert open_image(Image.fromarray(fractions)).getpixel((1, 1)) == (128, 128, 128)


def test_transparency_is_dropped() -> None:
    clear = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    assert open_image(clear).getpixel((0, 0)) == (10, 20, 30)
    assert open_image(Image.new("LA", (4, 4), (40, 0))).getpixel((0, 0)) == (40, 40, 40)
    flat = picture().convert("P")
    opened = open_image(as_bytes(flat, transparency=0))
    assert opened.tobytes() == flat.convert("RGB").tobytes()


MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "I", "F", "I;16"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(1, 1), (1, 2000), (4000, 30), (3, 3)])
def test_any_mode_and_size(mode: str, size: tuple[int, int]) -> None:
    opened = open_image(Image.new(mode, size))
    assert (opened.mode, opened.size) == ("RGB", size)


def test_the_first_of_moving_pictures() -> None:
    frames = [picture(RED, RED), picture(BLUE, BLUE)]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        data = as_bytes(frames[0], kind, save_all=True, append_images=frames[1:])
        with Image.open(BytesIO(data)) as moving:
            assert getattr(moving, "n_frames", 1) == 2
        opened: Any = open_image(data).getpixel((6, 3))
        assert opened[0] > 200
        assert opened[2] < 50


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_of_a_camera(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    opened = open_image(as_bytes(picture(), "PNG", exif=exif))
    assert opened.size == ((12, 6) if orientation < 5 else (6, 12))
    last = (opened.width - 1, opened.height - 1)
    # red is on the left: first in rows, or in columns of a turned picture, unless mirrored
    first_is_red = orientation in (1, 4, 5, 6)
    assert opened.getpixel((0, 0)) == (RED if first_is_red else BLUE)
    assert opened.getpixel(last) == (BLUE if first_is_red else RED)


def test_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held turned by 90 degrees
    opened = open_image(as_bytes(picture(), "JPEG", exif=exif, quality=95))
    assert opened.size == (6, 12)
    top: Any = opened.getpixel((3, 1))
    assert top[0] > 200


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (b"", "an image is no readable image"),
        (b"not an image at all", "cannot identify image file"),
        (as_bytes(Image.effect_noise((64, 64), 50))[:-900], "an image is no readable image"),
        ("nothing.png", r"nothing\.png is no readable image .*No such file"),
        ("https://example.org/a.png", "an address on the network; download it"),
        (7, "a int is neither image, bytes nor path"),
        (Image.new("RGB", (0, 5)), "an image is no readable image .it has 0 x 5 pixels.; check or"),
    ],
)
def test_unreadable(value: Any, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=sentence):
        open_image(value, tmp_path)


def test_large_pictures_load_and_larger_ones_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = as_bytes(picture())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)  # the picture has 72 pixels
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_image(data).size == (12, 6)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)
    with pytest.raises(CalibrationError, match="an image is too large to decode"):
        open_image(data)
