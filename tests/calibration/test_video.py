"""Frames of a video: which ones, when they were seen, upright, from every kind of source."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.calibration.data import as_bytes, choose
from vflowopt_search.calibration.choice import load_calibration
from vflowopt_search.calibration.rows import Columns
from vflowopt_search.calibration.video import at_rate, evenly_spread, read_video
from vflowopt_search.errors import CalibrationError, UnsupportedError

NUM, RATE, SIZE = 20, 10, (64, 48)


def grey(number: int) -> int:
    return 10 * number + 20


def write_video(path: Path, num: int = NUM, rotation: int | None = None) -> Path:
    """A video of RATE frames a second that grows lighter, its upper half black."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height = SIZE
        stream.bit_rate = 4_000_000
        stream.pix_fmt, stream.gop_size, stream.max_b_frames = "yuv420p", 6, 2
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for number in range(num):
            pixels = np.full((SIZE[1], SIZE[0], 3), grey(number % NUM), np.uint8)
            pixels[: SIZE[1] // 2] = 0
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def numbers(frames: tuple[Image.Image, ...]) -> list[int]:
    """Which frames these are, told by how light they are."""
    lights = [np.asarray(frame)[-4:, -4:].mean() for frame in frames]
    return [round((light - 20) / 10) for light in lights]


@given(st.integers(1, 5000), st.integers(1, 200))
def test_an_even_choice_keeps_both_ends(total: int, count: int) -> None:
    chosen = evenly_spread(total, count)
    assert len(chosen) == min(total, count)
    assert chosen == sorted(set(chosen))
    if min(total, count) > 1:
        assert (chosen[0], chosen[-1]) == (0, total - 1)
        steps = np.diff(chosen)
        assert steps.max() - steps.min() <= 1
    else:
        assert chosen == [total // 2]


@given(st.integers(1, 300), st.integers(1, 60), st.floats(0.01, 1e9))
def test_a_rate_shows_one_frame_a_tick(total: int, rate: int, fps: float) -> None:
    chosen = at_rate([number / rate for number in range(total)], fps)
    assert chosen == sorted(set(chosen))
    assert chosen[0] == 0
    assert abs(len(chosen) - min(total, total / rate * fps)) <= 1
    assert at_rate([number / rate for number in range(total)], rate) == list(range(total))


def test_a_rate_on_frames_that_come_unevenly() -> None:
    assert at_rate([5.0, 5.1, 5.2, 7.0, 7.9], 1.0) == [0, 2, 3, 4]
    assert at_rate([5.0, 5.1, 5.2, 7.0, 7.4], 1.0) == [0, 2, 3]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, [0, 3, 5, 8, 11, 14, 16, 19]),
        ({"frames": 1}, [10]),
        ({"frames": 2}, [0, 19]),
        ({"frames": 500}, list(range(NUM))),
        ({"fps": 2}, [0, 5, 10, 15]),
        ({"fps": 0.001}, [0]),
        ({"fps": 1000}, list(range(NUM))),
    ],
)
def test_frames_of_a_file(wanted: dict[str, Any], expected: list[int], tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4")
    for source in (path, str(path), path.read_bytes(), {"bytes": None, "path": str(path)}):
        video = read_video(source, **wanted)
        assert numbers(video.frames) == expected
        assert video.indices == expected
        assert video.timestamps == pytest.approx([number / RATE for number in expected])
        assert (video.fps, video.source_frames) == (RATE, NUM)
        assert {(frame.mode, frame.size) for frame in video.frames} == {("RGB", SIZE)}
    assert read_video("a.mp4", **wanted, folder=tmp_path) == video


def test_stretches_without_chosen_frames_are_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "a.mp4", num=180)
    decoded = 0
    decode = av.container.InputContainer.decode

    class Counting:
        """An open file that counts the frames it decodes."""

        def __init__(self, container: Any) -> None:
            self.container = container

        def __enter__(self) -> Counting:
            return self

        def __exit__(self, *error: object) -> None:
            self.container.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.container, name)

        def decode(self, stream: Any) -> Any:
            nonlocal decoded
            for frame in decode(self.container, stream):
                decoded += 1
                yield frame

    opened = av.open
    monkeypatch.setattr(av, "open", lambda file: Counting(opened(file)))
    assert len(read_video(path, frames=4).frames) == 4
    assert decoded < 40


@pytest.mark.parametrize("rotation", [90, -90, 180])
def test_a_file_is_turned_upright(rotation: int, tmp_path: Path) -> None:
    (frame,) = read_video(write_video(tmp_path / "a.mp4", rotation=rotation), frames=1).frames
    (flat,) = read_video(write_video(tmp_path / "b.mp4"), frames=1).frames
    assert np.array_equal(np.asarray(frame), np.rot90(np.asarray(flat), rotation // 90))


def test_lists_and_folders_of_frames(tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (8, 6), (grey(number),) * 3) for number in range(12)]
    for number, one in enumerate(pictures):
        one.save(tmp_path / f"frame{number}.png")  # frame10 comes after frame9
    (tmp_path / "notes.txt").write_text("no frame")
    sources: list[Any] = [
        tmp_path,
        [f"frame{number}.png" for number in range(12)],
        [{"bytes": as_bytes(one), "path": None} for one in pictures],
        pictures,
        tuple(np.asarray(one) for one in pictures),
        np.stack([np.asarray(one) for one in pictures]),
    ]
    for source in sources:
        video = read_video(source, frames=4, folder=tmp_path)
        assert numbers(video.frames) == [0, 4, 7, 11]
        assert (video.fps, video.timestamps, video.source_frames) == (None, (), 12)
        assert video.indices == [0, 1, 2, 3]
    assert len(read_video(pictures).frames) == 8


def uneven() -> list[Image.Image]:
    return [Image.new("RGB", (8, 6)), Image.new("RGB", (6, 8))]


@pytest.mark.parametrize(
    ("source", "wanted", "sentence"),
    [
        ([], {}, "a video has no frames; give at least one"),
        (uneven(), {}, "frame 1 of a video has 6 x 8 pixels and its first 8 x 6; make them one"),
        (uneven(), {"fps": 2}, "a list of frames does not say how fast it plays; ask for a number"),
        (["none.png"], {}, r"none\.png is no readable image \(No such file or directory\)"),
        ([np.zeros((2, 2, 7))], {}, r"an array of float64 and shape \(2, 2, 7\), which is no pict"),
        ("none.mp4", {}, r"none\.mp4 is no readable video \(No such file or directory\); check"),
        (b"not a video at all", {}, "a video is no readable video .*; check or convert it"),
        (7, {}, "a int is no video; give a file, its bytes, or a list of frames"),
        ("http://example.org/a.mp4", {}, "an address on the network; download it"),
        ([], {"frames": 0}, "0 frames of a video were asked for; ask for at least 1"),
        ([], {"fps": -1}, "-1 frames per second were asked for; ask for more than 0"),
        ([], {"fps": float("nan")}, "nan frames per second were asked for; ask"),
        ([], {"fps": 2, "frames": 3}, "3 frames and 2 frames per second were both asked for; cho"),
    ],
)
def test_what_is_no_video(source: Any, wanted: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CalibrationError, match=sentence):
        read_video(source, **wanted)


def test_damaged_files_and_sound_alone(tmp_path: Path) -> None:
    data = write_video(tmp_path / "a.mp4").read_bytes()
    with pytest.raises(CalibrationError, match="is no readable video"):
        read_video(data[: len(data) // 2])
    with av.open(str(tmp_path / "a.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(CalibrationError, match="it has no moving picture"):
        read_video(tmp_path / "a.wav")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CalibrationError, match="empty holds no images; give a folder of frames or"):
        read_video(tmp_path / "empty")


def test_without_pyav(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    assert len(read_video([Image.new("RGB", (4, 4))]).frames) == 1
    (tmp_path / "a.mp4").write_bytes(b"x")
    with pytest.raises(UnsupportedError, match=r'pip install "vflowopt-search\[video\]"'):
        # not a row to be skipped: no file of the set can be read
        choose([{"video": str(tmp_path / "a.mp4"), "question": "?"}])


def test_rows_with_videos(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4")
    for number in range(3):
        Image.new("RGB", (8, 6)).save(tmp_path / f"{number}.png")
    frames = [f"{number}.png" for number in range(3)]
    content: list[dict[str, Any]] = [
        {"id": "file", "video": "a.mp4", "question": "what?"},
        {"id": "two", "video": ["a.mp4", "a.mp4"], "question": "<video> or <video> ?"},
        {"id": "frames", "video": frames, "question": "what?"},
        {"id": "none", "video": None, "question": "what?"},
        {"id": "damaged", "video": "b.mp4", "question": "what?"},
    ]
    loaded = choose(content[:4] * 3 + content[4:], folder=tmp_path, frames=2)
    shapes = {s.id: [len(video.frames) for video in s.videos] for s in loaded.samples}
    assert shapes == {"file": [2], "two": [2, 2], "frames": [2]}
    assert "3 rows without an image skipped" in loaded.note
    assert "b.mp4 is no readable video" in loaded.note
    by_rate = choose(content[:1], folder=tmp_path, fps=2)
    assert len(by_rate.samples[0].videos[0].frames) == 4
    odd = [{"clip_of_it": "a.mp4", "question": "what?"}]
    named = choose(odd, folder=tmp_path, columns=Columns(video="clip_of_it"))
    assert len(named.samples[0].videos) == 1


def test_a_wrong_number_of_frames_is_no_unreadable_row(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4")
    (tmp_path / "a.json").write_text('[{"video": "a.mp4"}]')
    with pytest.raises(CalibrationError, match=r"^0 frames of a video were asked for"):
        load_calibration(tmp_path / "a.json", frames=0)
    (sample,) = load_calibration(tmp_path / "a.json").samples
    assert sample.prompt == "Describe the video."
