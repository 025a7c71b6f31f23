"""Every kind of source holds the same samples; what is none is told in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from tests.calibration.data import choose, picture, rows, table, write_images, write_jsonl
from vflowopt_search.calibration.choice import load_calibration
from vflowopt_search.errors import CalibrationError


def as_jsonl(folder: Path) -> Path:
    return write_jsonl(folder)


def as_json(folder: Path) -> Path:
    write_images(folder)
    (folder / "data.json").write_text(json.dumps(rows()))
    return folder / "data.json"


def as_json_object(folder: Path) -> Path:
    write_images(folder)
    (folder / "data.json").write_text(json.dumps({"version": 1, "data": rows()}))
    return folder / "data.json"


def as_parquet(folder: Path) -> Path:
    table().to_parquet(folder / "data.parquet")
    return folder / "data.parquet"


def as_parquet_of_paths(folder: Path) -> Path:
    write_images(folder)
    Dataset.from_list(rows()).to_parquet(folder / "data.parquet")
    return folder / "data.parquet"


def as_folder_of_parquet(folder: Path) -> Path:
    (folder / "data").mkdir()
    table().to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    return folder


def as_folder_of_jsonl(folder: Path) -> Path:
    return write_jsonl(folder).parent


def as_saved(folder: Path) -> Path:
    table().save_to_disk(folder / "saved")
    return folder / "saved"


def as_saved_splits(folder: Path) -> Path:
    DatasetDict({"test": table()}).save_to_disk(folder / "saved")
    return folder / "saved"


def as_image_folder(folder: Path) -> Path:
    write_images(folder)
    described = [
        {"file_name": Path(row["image"]).name} | {k: v for k, v in row.items() if k != "image"}
        for row in rows()
    ]
    lines = "\n".join(json.dumps(row) for row in described)
    (folder / "images" / "metadata.jsonl").write_text(lines)
    return folder / "images"


SOURCES = [
    as_jsonl,
    as_json,
    as_json_object,
    as_parquet,
    as_parquet_of_paths,
    as_folder_of_parquet,
    as_folder_of_jsonl,
    as_saved,
    as_saved_splits,
    as_image_folder,
]


@pytest.mark.parametrize("write", SOURCES)
def test_every_source_holds_the_same(write: Any, tmp_path: Path) -> None:
    source = write(tmp_path)
    loaded = load_calibration(source, num_samples=5, seed=3)
    expected = choose(table(), num_samples=5, seed=3)
    assert loaded.name == str(source)
    assert len(loaded) == 5
    if write is not as_image_folder:  # which lists its files in its own order
        assert loaded.sha256 == expected.sha256
    for sample in loaded.samples:
        number = int(sample.id.removeprefix("q"))
        assert sample.prompt == f"How many, {number}?"
        assert sample.answer == str(number)
        assert sample.group == ("even" if number % 2 == 0 else "odd")
        (image,) = sample.images
        assert (image.size, image.tobytes()) == (picture(number).size, picture(number).tobytes())


def test_bare_images_are_to_be_described(tmp_path: Path) -> None:
    for kind in ("cat", "dog"):
        (tmp_path / kind).mkdir()
        for number in range(3):
            picture(number).save(tmp_path / kind / f"{number}.png")
    loaded = load_calibration(tmp_path, num_samples=6)
    assert {sample.prompt for sample in loaded.samples} == {"Describe the image."}
    assert sorted(str(sample.answer) for sample in loaded.samples) == ["cat"] * 3 + ["dog"] * 3
    asked = load_calibration(tmp_path, num_samples=6, prompt="Which animal?")
    assert {sample.prompt for sample in asked.samples} == {"Which animal?"}
    assert asked.sha256 != loaded.sha256
    halved = load_calibration(tmp_path, num_samples=6, halve=True)
    for described in (loaded, halved):
        assert (
            "no question is in the data: every image is asked 'Describe the image.'; give yours "
            "with --prompt"
        ) in described.note
        assert "no question" not in described.held_out_note
    assert asked.note == ""


def test_a_list_of_rows_with_pil_images() -> None:
    content = [{"img": picture(1), "text": "one"}, {"img": [picture(2), picture(3)], "text": "two"}]
    loaded = choose(content)
    assert sorted((s.prompt, len(s.images)) for s in loaded.samples) == [("one", 1), ("two", 2)]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.jsonl", "", "is empty; give a data set with at least one row"),
        ("a.json", "", "is not JSON .*; correct it"),
        ("a.json", '{"x": 1}', "is not a list of objects; give one object per sample"),
        ("a.json", "[1, 2]", "is not a list of objects"),
        ("a.jsonl", '[1]\n{"ima', "line 1 is not an object; give one object per sample"),
        ("a.jsonl", '{"ima', "line 1 is not JSON"),
        ("a.jsonl", b"\xff\xfe\x00", "is not UTF-8"),
        ("a.parquet", "junk", "cannot be read as a data set .*Parquet"),
        ("a.parquet", "", "cannot be read as a data set"),
        ("a.csv", "image,question", r"is not one of \.json, \.jsonl, \.parquet; convert it"),
    ],
)
def test_malformed_files(name: str, content: str | bytes, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=sentence):
        load_calibration(write(tmp_path / name, content))


def test_folders_without_data(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"cannot be read as a data set .*any data files"):
        load_calibration(tmp_path)
    write(tmp_path / "state.json", "{")
    with pytest.raises(CalibrationError, match="is a damaged saved data set"):
        load_calibration(tmp_path)


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    for source in (tmp_path / "nothing", "./nothing", "nothing.jsonl"):
        with pytest.raises(
            CalibrationError, match="does not exist; give a file, a folder or a hub"
        ):
            load_calibration(source)


def test_a_hub_name_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CalibrationError, match=r"nobody/nothing cannot be read .*Couldn't reach"):
        load_calibration("nobody/nothing")
    monkeypatch.setattr("vflowopt_search.calibration.sources.offline_wanted", lambda: False)
    monkeypatch.setattr("vflowopt_search.calibration.sources.hub_answers", lambda: False)
    with pytest.raises(CalibrationError, match="the hub does not answer; give a local one, or set"):
        load_calibration("nobody/nothing")


def test_splits(tmp_path: Path) -> None:
    splits = DatasetDict({"train": table(), "test": table().select(range(3))})
    splits.save_to_disk(tmp_path / "saved")
    assert len(load_calibration(tmp_path / "saved", split="test")) == 3
    for split in (None, "val"):
        with pytest.raises(CalibrationError, match="has the splits train, test and"):
            load_calibration(tmp_path / "saved", split=split)
    with pytest.raises(CalibrationError, match="splits train, test was given; choose one"):
        choose(splits)


def test_files_of_a_folder_are_its_splits(tmp_path: Path) -> None:
    (write_jsonl(tmp_path)).rename(tmp_path / "train.jsonl")
    write(tmp_path / "test.jsonl", json.dumps(rows()[0]))
    assert len(load_calibration(tmp_path, split="test")) == 1
    with pytest.raises(CalibrationError, match="has the splits test, train and none was asked for"):
        load_calibration(tmp_path)
