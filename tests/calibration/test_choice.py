"""Samples are chosen by seed, the unusable skipped and counted, and told by a fingerprint."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import pytest
from datasets import Image as ImageFeature
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.calibration.data import NUM, as_bytes, choose, picture, rows, table, write_jsonl
from vflowopt_search.calibration import choice
from vflowopt_search.calibration.choice import load_calibration, order
from vflowopt_search.calibration.images import open_image
from vflowopt_search.calibration.samples import Mark, Sample, Turn, Video, fingerprint
from vflowopt_search.calibration.shared_images import without_images_of
from vflowopt_search.errors import CalibrationError


def test_chosen_by_seed_without_replacement() -> None:
    ids = {
        seed: [s.id for s in choose(table(), num_samples=6, seed=seed).samples] for seed in (1, 2)
    }
    assert ids[1] == [s.id for s in choose(table(), num_samples=6, seed=1).samples]
    assert ids[1] != ids[2]
    assert len(set(ids[1])) == 6


def test_more_samples_extend_the_choice() -> None:
    few, many = (choose(table(), num_samples=num).samples for num in (4, 9))
    assert [s.id for s in few] == [s.id for s in many][:4]


def test_passing_over_those_of_another_choice_gives_the_ones_behind_them() -> None:
    whole = [sample.id for sample in choose(table(), num_samples=9).samples]
    for skip in range(9):
        rest = choose(table(), num_samples=9 - skip, skip=skip).samples
        assert [sample.id for sample in rest] == whole[skip:]
    with pytest.raises(CalibrationError, match="has no usable row left"):
        choose(table(), num_samples=3, skip=NUM)


def test_rows_added_later_do_not_reorder() -> None:
    later = order(200, seed=5)
    assert sorted(later) == list(range(200))
    assert [row for row in later if row < 150] == order(150, seed=5)
    assert later != order(200, seed=6)


def test_fewer_than_asked_takes_all_and_says_so() -> None:
    loaded = choose(table(), num_samples=50)
    assert len(loaded) == NUM
    assert loaded.note == "12 instead of 50 samples: the data has no more"
    assert choose(table(), num_samples=NUM).note == ""


@pytest.mark.parametrize(("asked", "found"), [(5, 5), (6, 6), (7, 6), (12, 6), (256, 6)])
def test_half_of_a_small_set_is_left_to_be_held_out(asked: int, found: int) -> None:
    seen = choose(table(), num_samples=asked, halve=True)
    assert seen.samples == choose(table(), num_samples=found).samples
    assert seen.sha256 == fingerprint(seen.samples)
    assert seen.halved == (NUM if asked > 6 else 0)
    assert seen.note == (asked > 6) * (
        f"12 samples can be used, fewer than twice {asked}: the search sees 6 of them, and the "
        "others about other images are held out"
    )
    others = without_images_of(choose(table(), num_samples=2 * asked), seen)
    assert others is not None
    assert len(others) == min(NUM - found, asked)


def test_rows_that_cannot_be_used_are_in_neither_half() -> None:
    content = [row | {"image": picture(n)} for n, row in enumerate(rows())]
    bad = [{"image": None, "question": "?"}] * 20
    seen = choose([*content, *bad], num_samples=8, halve=True)
    assert (len(seen), seen.halved, seen.skipped) == (6, NUM, 20)
    assert seen.note.startswith("20 rows without an image skipped; 12 samples can be used")


asked_about = st.lists(st.integers(0, 5), min_size=1, max_size=14)


@given(shown=asked_about, asked=st.integers(1, 16), seed=st.integers(0, 3))
def test_halves_share_no_image(shown: list[int], asked: int, seed: int) -> None:
    content = [{"image": picture(n), "question": f"{i} ?"} for i, n in enumerate(shown)]
    seen = choose(content, num_samples=asked, seed=seed, halve=True)
    others = without_images_of(choose(content, num_samples=2 * asked, seed=seed), seen)
    assert len(seen) <= asked
    one_image = len(set(shown)) == 1
    small = len(shown) < 2 * asked
    assert bool(seen.halved) == (small and not one_image)
    assert (others is None) <= (one_image or not small)
    if seen.halved:
        assert len(seen) == ceil(len(shown) / 2)
    if others is not None:
        pixels = [{one.images[0].tobytes() for one in half.samples} for half in (seen, others)]
        assert pixels[0].isdisjoint(pixels[1])


def test_only_chosen_images_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []

    def count(value: Any, folder: Path | None = None) -> Image.Image:
        opened.append(value)
        return picture(0)

    monkeypatch.setattr(choice, "open_image", count)
    monkeypatch.setattr(
        ImageFeature, "decode_example", lambda *_: pytest.fail("decoded by datasets")
    )
    choose(table(), num_samples=3)
    assert len(opened) == 3


def test_the_fingerprint_notices_any_change() -> None:
    (sample,) = choose(table(), num_samples=1).samples
    image = sample.images[0]
    touched = image.copy()
    touched.putpixel((3, 3), (1, 2, 3))
    reshaped = Image.frombytes("RGB", (image.height, image.width), image.tobytes())
    variants = [
        sample,
        replace(sample, prompt=sample.prompt + " "),
        replace(sample, images=(touched,)),
        replace(sample, images=(reshaped,)),
        replace(sample, images=(image, image)),
    ]
    prints = [fingerprint([variant]) for variant in variants]
    prints += [
        fingerprint([sample, sample]),
        fingerprint(variants[:2]),
        fingerprint(variants[1::-1]),
    ]
    assert len(set(prints)) == len(prints)


def test_the_fingerprint_knows_where_each_part_ends() -> None:
    pixel = Image.frombytes("RGB", (1, 1), b"ABC")
    two = [Sample("a", "p", (pixel,)), Sample("b", "q", (pixel,))]
    one = [Sample("a", "p1RGB 1 1ABCq", (pixel,))]
    assert fingerprint(two) != fingerprint(one)


def test_the_fingerprint_of_a_set_without_chats_and_videos_never_changes() -> None:
    # references are stored under it
    known = "703ebc15bd758381dc0cd63af09d8d74ecdf7751b7215746f18eaf12b67fbaba"
    assert choose(table(), num_samples=3).sha256 == known


def test_the_fingerprint_covers_chats_and_videos() -> None:
    image = picture(1)
    plain = Sample("s", "a b", (image,))
    turns = (Turn("user", ("a ", Mark.IMAGE, "b")),)
    clip = Video((image, image), 10.0, (0.0, 0.5), 20)
    variants = [
        plain,
        replace(plain, turns=turns),
        replace(plain, turns=(Turn("user", ("a", Mark.IMAGE, " b")),)),
        replace(plain, turns=(Turn("assistant", turns[0].parts),)),
        replace(plain, turns=(Turn("user", ("a ",)), Turn("user", (Mark.IMAGE, "b")))),
        replace(plain, prompt="<image", turns=(Turn("user", ("<image", Mark.IMAGE)),)),
        replace(plain, prompt="<image", turns=(Turn("user", (Mark.IMAGE, "<image")),)),
        replace(plain, images=(), videos=(clip,)),
        replace(plain, videos=(clip,)),
        replace(plain, videos=(clip, clip)),
        replace(plain, videos=(replace(clip, fps=None),)),
        replace(plain, videos=(replace(clip, timestamps=(0.0, 0.6)),)),
        replace(plain, videos=(replace(clip, frames=(image, picture(2))),)),
    ]
    prints = [fingerprint([variant]) for variant in variants]
    prints += [fingerprint([plain, variant]) for variant in variants]
    assert len(set(prints)) == len(prints)


def test_the_fingerprint_is_not_about_names() -> None:
    (sample,) = choose(table(), num_samples=1).samples
    assert fingerprint([sample]) == fingerprint([replace(sample, id="x", group=None)])
    assert choose(table()).sha256 == choose(table(), name="other").sha256


def test_unreadable_images_are_replaced_and_counted(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path)
    (tmp_path / "images" / "4.png").write_bytes(b"damaged")
    (tmp_path / "images" / "5.png").unlink()
    loaded = load_calibration(file, num_samples=10)
    assert len(loaded) == 10
    assert loaded.skipped == 2
    named = "2 rows that cannot be read skipped: q4, q5 (the first: images/4.png"
    assert named in loaded.note


def test_rows_without_a_name_are_counted_as_the_file_counts_them(tmp_path: Path) -> None:
    """From 1, and in their order, though they are tried in another."""
    picture(0).save(tmp_path / "a.png")
    rows = ['{"image": "a.png", "question": "?"}'] * 40
    for number in (20, 2, 31):
        rows[number - 1] = "{" * number
    file = tmp_path / "data.jsonl"
    file.write_text("\n".join(rows))
    loaded = load_calibration(file)
    assert (
        f"3 rows that cannot be read skipped: 2, 20, 31 (the first: {file} line 2 " in loaded.note
    )
    file.write_text("\n".join(rows[:2]))
    with pytest.raises(CalibrationError, match=r"row 2 cannot be used, .* line 2 "):
        load_calibration(file, strict=True)


def test_a_broken_line_costs_its_row_only(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path)
    whole = load_calibration(file)
    lines = file.read_text().splitlines()
    broken = [line[:9] if n == 2 else line for n, line in enumerate(lines)]
    file.write_text("\n".join([*broken[:7], "[1]", *broken[7:]]) + "\n")
    loaded = load_calibration(file)
    assert {one.id for one in loaded.samples} == {one.id for one in whole.samples} - {"q2"}
    assert loaded.skipped == 2
    assert "2 rows that cannot be read skipped: " in loaded.note
    assert "data.jsonl line " in loaded.note
    left = f"{len(loaded)} instead of 256 samples: the data has no others that can be used"
    assert loaded.note.endswith(left)


def test_strictly_the_first_row_that_cannot_be_read_ends_it(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path)
    (tmp_path / "images" / "4.png").write_bytes(b"damaged")
    with pytest.raises(CalibrationError, match=r"row q4 cannot be used, .*: images/4\.png is no"):
        load_calibration(file, strict=True)


def test_a_damaged_file_is_not_left_open(tmp_path: Path) -> None:
    file = tmp_path / "cut.jpg"
    file.write_bytes(as_bytes(Image.effect_noise((64, 64), 50), "JPEG")[:400])
    with pytest.raises(CalibrationError, match="is no readable image"):
        open_image(file)
    opened = {entry.resolve() for entry in Path("/proc/self/fd").iterdir()}
    assert file.resolve() not in opened


def test_too_many_unreadable_images(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path)
    for number in range(4):
        (tmp_path / "images" / f"{number}.png").write_bytes(b"damaged")
    sentence = r"4 rows of .* \((q\d, ){3}q\d\), more than 20% .*the first: images/"
    with pytest.raises(CalibrationError, match=sentence):
        load_calibration(file, num_samples=50)


def test_a_hopeless_data_set_is_given_up_early(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Any] = []

    def fail(value: Any, folder: Path | None = None) -> Image.Image:
        tried.append(value)
        raise CalibrationError("damaged")

    monkeypatch.setattr(choice, "open_image", fail)
    content = [{"image": "a.png", "question": "?"}] * 1000
    with pytest.raises(CalibrationError, match="3 rows of test cannot be read"):
        choose(content, num_samples=8)
    assert len(tried) == 3


def test_rows_without_question_or_image() -> None:
    content = [
        {"image": picture(1), "question": "?"},
        {"image": picture(1), "question": "<image> "},
        {"image": None, "question": "?"},
        {"image": [], "question": "?"},
    ]
    loaded = choose(content)
    assert (len(loaded), loaded.skipped) == (1, 3)
    with pytest.raises(
        CalibrationError, match="has no usable row: 2 rows without an image skipped"
    ):
        choose(content[2:])


def test_what_cannot_be_chosen_from() -> None:
    with pytest.raises(CalibrationError, match=r"give a datasets\.Dataset \(streaming off\)"):
        choose(table().to_iterable_dataset())
    with pytest.raises(CalibrationError, match="0 samples were asked for; ask for at least 1"):
        choose(table(), num_samples=0)


def test_importing_is_light() -> None:
    code = (
        "import sys, vflowopt_search.calibration\n"
        "heavy = {'torch', 'transformers', 'datasets'} & set(sys.modules)\n"
        "print(', '.join(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("\n", "")
