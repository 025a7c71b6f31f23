"""Videos as a file, a folder of frames or a list of them: some frames, evenly spread or by rate."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from vflowopt_search.calibration.images import is_picture, open_image
from vflowopt_search.calibration.samples import Video
from vflowopt_search.errors import CalibrationError, UnsupportedError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

DEFAULT_FRAMES = 8


def read_video(
    source: Any,
    *,
    frames: int | None = None,
    fps: float | None = None,
    folder: Path | None = None,
) -> Video:
    """Decode some frames of a video, upright and RGB.

    Args:
        source: a file's path or bytes, the mapping {"bytes": ..., "path": ...} of `datasets`, a
            folder of images (by name, numbers by value), or a list of frames: paths, bytes, PIL
            images or arrays of height, width and colour.
        frames: at most this many, evenly spread from the first to the last; one is the middle one.
        fps: frames per second of the video's own time instead, from its start.
        folder: where relative paths start.

    Raises:
        CalibrationError: it cannot be decoded, or the wrong frames are asked for.
        UnsupportedError: a file is to be read, and PyAV is not installed.
    """
    check_frame_choice(frames, fps)
    count = frames or DEFAULT_FRAMES
    source = _located(source, folder)
    if isinstance(source, Path) and source.is_dir():
        source = _images_in(source)
    if isinstance(source, list | tuple | np.ndarray):
        if fps is not None:
            raise CalibrationError(
                f"{fps:g} frames per second were asked for, but a list of frames does not say how "
                f"fast it plays; ask for a number of frames"
            )
        return _from_frames(source, count, folder)
    return _from_file(source, count, fps)


def check_frame_choice(frames: int | None, fps: float | None) -> None:
    """Refuse a count or a rate that chooses nothing, and both at once.

    Raises:
        CalibrationError: names the wrong one.
    """
    if frames is not None and fps is not None:
        raise CalibrationError(
            f"{frames} frames and {fps:g} frames per second were both asked for; choose one"
        )
    if frames is not None and frames < 1:
        raise CalibrationError(f"{frames} frames of a video were asked for; ask for at least 1")
    if fps is not None and not 0 < fps < float("inf"):
        raise CalibrationError(f"{fps:g} frames per second were asked for; ask for more than 0")


def evenly_spread(total: int, count: int) -> list[int]:
    """At most `count` of `total` frames: first, last and equal steps between; one is the middle."""
    if count >= total:
        return list(range(total))
    if count == 1:
        return [total // 2]
    return [round(step * (total - 1) / (count - 1)) for step in range(count)]


def at_rate(seconds: Sequence[float], fps: float) -> list[int]:
    """Of frames at these ascending times, the ones on screen at 0, 1/fps, 2/fps, ..., each once."""
    last_gap = seconds[-1] - seconds[-2] if len(seconds) > 1 else 0.0
    # the last frame stays as long as the one before it; rounded, for time bases are fractions
    ticks = [
        math.ceil(round((second - seconds[0]) * fps, 6))
        for second in (*seconds, seconds[-1] + last_gap)
    ]
    chosen = [index for index in range(len(seconds)) if ticks[index] < ticks[index + 1]]
    return chosen or [0]


def _located(source: Any, folder: Path | None) -> Any:
    """A path made absolute; bytes, frames and whatever else as they are."""
    if isinstance(source, Mapping):
        source = source.get("bytes") or source.get("path")
    if isinstance(source, bytearray | memoryview):
        return bytes(source)
    if not isinstance(source, str | Path):
        return source
    if "://" in str(source):
        raise CalibrationError(
            f"{source} is an address on the network; download it and give the path"
        )
    return (folder or Path()) / Path(source).expanduser()


def _images_in(folder: Path) -> list[Path]:
    files = [file for file in folder.iterdir() if is_picture(file)]
    if not files:
        raise CalibrationError(f"{folder} holds no images; give a folder of frames or a video file")
    return sorted(files, key=lambda file: _by_number(file.name))


def _by_number(name: str) -> list[tuple[int, str]]:
    """A sort key that puts frame2 before frame10."""
    pieces = re.findall(r"\d+|\D+", name)
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in pieces]


def _from_frames(
    source: Sequence[Any] | np.ndarray[Any, Any], count: int, folder: Path | None
) -> Video:
    chosen = evenly_spread(len(source), count)
    images = tuple(_frame(source[index], folder) for index in chosen)
    if not images:
        raise CalibrationError("a video has no frames; give at least one")
    width, height = images[0].size
    for index, image in zip(chosen, images, strict=True):
        if image.size != (width, height):
            raise CalibrationError(
                f"frame {index} of a video has {image.width} x {image.height} pixels and its "
                f"first {width} x {height}; make them one size"
            )
    return Video(images, source_frames=len(source))


def _frame(value: Any, folder: Path | None) -> Image.Image:
    if isinstance(value, np.ndarray):
        try:
            value = Image.fromarray(value)
        except TypeError as error:
            raise CalibrationError(
                f"a frame is an array of {value.dtype} and shape {value.shape}, which is no "
                f"picture; give uint8 of height, width and 3 colours"
            ) from error
    return open_image(value, folder)


def _from_file(source: Any, count: int, fps: float | None) -> Video:
    name = str(source) if isinstance(source, Path) else "a video"
    if not isinstance(source, Path | bytes):
        raise CalibrationError(
            f"a {type(source).__name__} is no video; give a file, its bytes, or a list of frames"
        )
    try:
        import av
    except ImportError as error:
        raise UnsupportedError(
            f"{name} needs PyAV to be decoded, which is not installed; "
            f'pip install "vflowopt-search[video]", or give frames as images'
        ) from error
    file: Any = source if isinstance(source, Path) else BytesIO(source)
    try:
        with av.open(file) as container:
            video = _decode(container, count, fps)
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CalibrationError(
            f"{name} is no readable video ({reason}); check or convert it"
        ) from error
    return video


def _decode(container: InputContainer, count: int, fps: float | None) -> Video:
    """The chosen frames of an open file; its packets are read first, for the time of each frame."""
    if not container.streams.video:
        raise ValueError("it has no moving picture")
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    shown, keys = _times(container, stream)
    base = float(stream.time_base or 1)
    if fps is None:
        chosen = evenly_spread(len(shown), count)
    else:
        chosen = at_rate([time * base for time in shown], fps)
    wanted = [shown[index] for index in chosen]
    decoded = list(_frames_at(container, stream, wanted, keys))
    if not decoded:
        raise ValueError("none of its frames can be decoded")
    rate = stream.average_rate or stream.guessed_rate
    return Video(
        frames=tuple(image for image, _ in decoded),
        fps=float(rate) if rate else None,
        timestamps=tuple((time - shown[0]) * base for _, time in decoded),
        source_frames=len(shown),
    )


def _times(container: InputContainer, stream: VideoStream) -> tuple[list[int], list[int]]:
    """Presentation times of all frames and of the key frames, ascending."""
    packets = [
        (packet.pts if packet.pts is not None else packet.dts, packet.is_keyframe)
        for packet in container.demux(stream)
        if packet.size and not packet.is_discard
    ]
    timed = sorted((time, key) for time, key in packets if time is not None)
    if not timed:
        raise ValueError("it has no frames")
    return [time for time, _ in timed], [time for time, key in timed if key]


def _frames_at(
    container: InputContainer, stream: VideoStream, wanted: Sequence[int], keys: Sequence[int]
) -> Iterator[tuple[Image.Image, int]]:
    """The first frame at or after each wanted time, and its time; stretches between are skipped."""
    reached: int | None = None
    decoded: Iterator[VideoFrame] = iter(())
    for time in wanted:
        key = max((key for key in keys if key <= time), default=time)
        if reached is None or key > reached:
            container.seek(key, stream=stream)
            decoded = container.decode(stream)
        for frame in decoded:
            reached = frame.pts if frame.pts is not None else frame.dts
            if reached is not None and reached >= time:
                yield _upright(frame), reached
                break


def _upright(frame: VideoFrame) -> Image.Image:
    """A decoded frame as RGB, turned as the file says that its camera was held."""
    untyped: Any = frame
    image: Image.Image = untyped.to_image()
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image
