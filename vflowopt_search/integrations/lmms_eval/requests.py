"""lmms-eval's requests in our words: messages to samples, generation settings, stop strings.

Nothing here imports lmms-eval.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from vflowopt_search.calibration.conversations import WRITTEN, is_usual
from vflowopt_search.calibration.images import is_picture, open_image
from vflowopt_search.calibration.samples import Mark, Part, Sample, Turn, Video
from vflowopt_search.calibration.video import read_video
from vflowopt_search.errors import UnsupportedError

LONGEST_ANSWER = 1024
"""New tokens where a task names no limit, as in lmms-eval's own models."""

# what `generate` knows by the same name, beside those of sampling
_KEPT = ("num_beams", "length_penalty", "repetition_penalty", "no_repeat_ngram_size")
_SAMPLING = ("temperature", "top_p", "top_k")
_READ = {"max_new_tokens", "max_gen_toks", "do_sample", "until", "stop_sequences"}


@dataclass(frozen=True)
class Generation:
    """A task's generation settings.

    Attributes:
        options: what `generate` is given.
        until: strings that end an answer and are no part of it.
        ignored: settings that mean nothing here.
    """

    options: dict[str, Any]
    until: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    def cut(self, answer: str) -> str:
        """The answer up to the first stop string."""
        ends = [answer.find(stop) for stop in self.until if stop in answer]
        return answer[: min(ends)] if ends else answer


@dataclass(frozen=True)
class FrameChoice:
    """Which frames of a video are shown: so many evenly spread, or so many of each second."""

    count: int | None = None
    fps: float | None = None


@dataclass
class _Media:
    """Pictures and videos in the order of the prompt."""

    images: list[Image.Image] = field(default_factory=list)
    videos: list[Video] = field(default_factory=list)


def generation_of(settings: Mapping[str, Any]) -> Generation:
    """Read a task's `generation_kwargs`; sampling only at a temperature above 0."""
    given = {name: value for name, value in settings.items() if value is not None}
    temperature = float(given.get("temperature", 0))
    samples = temperature > 0 and bool(given.get("do_sample", True))
    options: dict[str, Any] = {
        "max_new_tokens": given.get("max_new_tokens", given.get("max_gen_toks", LONGEST_ANSWER)),
        "do_sample": samples,
        "num_beams": 1,
    }
    options |= {name: given[name] for name in _KEPT if name in given}
    # None, not absent: the checkpoint's own settings would hold otherwise
    options |= {name: given.get(name) if samples else None for name in _SAMPLING}
    stops = [given.get(name, ()) for name in ("until", "stop_sequences")]
    until = [stop for each in stops for stop in ([each] if isinstance(each, str) else each)]
    known = {*_KEPT, *_SAMPLING, *_READ}
    ignored = sorted(set(given) - known)
    return Generation(options, tuple(stop for stop in until if stop), tuple(ignored))


def sample_of_messages(
    name: str, messages: Sequence[Mapping[str, Any]], frames: FrameChoice, system: str | None = None
) -> Sample:
    """A chat of `{role, content}` messages, whose contents are words, images and videos.

    Where the words themselves hold as many marks (`<image>`) as there are images, these say where
    the images belong; otherwise such marks are taken out.

    Raises:
        UnsupportedError: a content is neither words, image nor video.
        CalibrationError: an image or a video cannot be read.
    """
    media = _Media()
    turns = [Turn("system", (system,))] if system else []
    for message in messages:
        if message["role"] == "system" and system:
            continue  # the one that was asked for stands instead
        content = message["content"]
        parts = [content] if isinstance(content, str) else content
        read = tuple(_part(part, media, frames) for part in parts)
        turns.append(Turn(message["role"], read))
    return _sample(name, [_placed(turn) for turn in turns], media)


def sample_of_text(
    name: str, text: str, visuals: Sequence[Any], frames: FrameChoice, system: str | None = None
) -> Sample:
    """One question: `visuals` before its words, or where the words have a mark for each.

    Raises:
        UnsupportedError: a visual is neither image nor video.
        CalibrationError: an image or a video cannot be read.
    """
    content = [*_flat(visuals), {"type": "text", "text": text}]
    return sample_of_messages(name, [{"role": "user", "content": content}], frames, system)


def _flat(visuals: Sequence[Any]) -> list[Any]:
    nested = [each if isinstance(each, list | tuple) else [each] for each in visuals]
    return [one for each in nested for one in each if one is not None]


def _part(part: Any, media: _Media, frames: FrameChoice) -> Part:
    """Words, or the mark of a picture or video that is read on the way."""
    if isinstance(part, Mapping) and part.get("type") == "text":
        return str(part["text"])
    kind, value = _kind_and_value(part)
    if kind is Mark.IMAGE:
        media.images.append(open_image(value))
    else:
        media.videos.append(read_video(value, frames=frames.count, fps=frames.fps))
    return kind


def _kind_and_value(part: Any) -> tuple[Mark, Any]:
    if isinstance(part, Mapping):
        if any(part.get(key) is not None for key in ("start_time", "end_time", "video_start")):
            raise UnsupportedError(
                "a request shows a part of a video, from one time to another, which cannot be "
                "chosen here; cut the video, or leave this task out"
            )
        kinds = {"image": Mark.IMAGE, "video": Mark.VIDEO}
        value = next((part[key] for key in ("url", "path", "bytes") if part.get(key)), None)
        if part.get("type") in kinds and value is not None:
            return kinds[part["type"]], value
    elif isinstance(part, Image.Image):
        return Mark.IMAGE, part
    elif isinstance(part, str | Path):
        return (Mark.IMAGE if is_picture(part) else Mark.VIDEO), part
    what = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise UnsupportedError(
        f"a request holds a {what}, but this model is given words, images and videos; leave this "
        f"task out"
    )


def _placed(turn: Turn) -> Turn:
    """The turn with its images and videos where its words have marks for them, if they do."""
    parts = list(turn.parts)
    for written, mark in WRITTEN.items():
        marks = sum(part.count(written) for part in parts if isinstance(part, str))
        by_words = marks > 0 and marks == parts.count(mark)
        pieces: list[Part] = []
        for part in parts:
            if part is mark and by_words:
                continue
            if not isinstance(part, str) or not marks:
                pieces.append(part)
                continue
            for piece in re.split(f"({written})", part):
                if piece != written:
                    pieces += [piece] if piece else []
                elif by_words:
                    pieces.append(mark)
        parts = pieces
    return Turn(turn.role, tuple(parts))


def _sample(name: str, turns: Sequence[Turn], media: _Media) -> Sample:
    spoken = [part for part in turns[-1].parts if isinstance(part, str)] if turns else []
    return Sample(
        id=name,
        prompt="".join(spoken),
        images=tuple(media.images),
        turns=() if is_usual(tuple(turns)) else tuple(turns),
        videos=tuple(media.videos),
    )
