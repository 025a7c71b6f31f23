"""What a calibration set is made of, and its fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Literal

from vflowopt_search.errors import CalibrationError

if TYPE_CHECKING:
    from PIL.Image import Image

Role = Literal["system", "user", "assistant"]


class Mark(Enum):
    """Stands in a turn where the sample's next image or next video belongs."""

    IMAGE = "image"
    VIDEO = "video"


Part = str | Mark
"""Words, or the place of an image or a video."""


@dataclass(frozen=True)
class Turn:
    """What one side of a chat said, in order."""

    role: Role
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Video:
    """Frames chosen from a video, in order; frames are RGB, upright and of one size.

    Attributes:
        fps: frames per second of the source; None when it is not known.
        timestamps: seconds from the start of the source to each frame; empty when not known.
        source_frames: how many frames the source has.
    """

    frames: tuple[Image, ...]
    fps: float | None = None
    timestamps: tuple[float, ...] = ()
    source_frames: int = 0

    @property
    def indices(self) -> list[int]:
        """Number of each frame in the source, by its timestamp; 0, 1, 2, ... when not known."""
        if self.fps is None or not self.timestamps:
            return list(range(len(self.frames)))
        return [round(second * self.fps) for second in self.timestamps]


@dataclass(frozen=True)
class Sample:
    """One question about images or videos, alone or at the end of a chat; images are RGB.

    Attributes:
        prompt: the question's words.
        answer: the right answer; of several the most frequent.
        answers: all right answers, one for each annotator, where there are several.
        options: what a multiple-choice question offers, A first.
        turns: the whole chat up to the question, with a mark for every image and video; without
            turns, images and then videos stand before the prompt.
    """

    id: str
    prompt: str
    images: tuple[Image, ...]
    answer: str | None = None
    group: str | None = None
    turns: tuple[Turn, ...] = ()
    videos: tuple[Video, ...] = ()
    answers: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        held = {Mark.IMAGE: len(self.images), Mark.VIDEO: len(self.videos)}
        marked = {mark: count_marks(self.turns, mark) for mark in Mark}
        if self.turns and marked != held:
            raise CalibrationError(
                f"the turns of sample {self.id} have marks for {marked[Mark.IMAGE]} images and "
                f"{marked[Mark.VIDEO]} videos, but the sample holds {held[Mark.IMAGE]} and "
                f"{held[Mark.VIDEO]}; give each its mark"
            )

    @property
    def chat(self) -> tuple[Turn, ...]:
        """The turns; without any, one of the user with images and videos before the prompt."""
        return self.turns or usual_chat(self.prompt, len(self.images), len(self.videos))

    @property
    def truths(self) -> tuple[str, ...]:
        """All answers that are right, none of an unlabelled sample."""
        return self.answers or (() if self.answer is None else (self.answer,))


@dataclass(frozen=True)
class CalibrationSet:
    """Chosen samples; `sha256` is over their prompts and pixels, wherever they came from.

    Attributes:
        skipped: how many rows and samples were left out.
        left_out: which, and why, in words.
        refused: how many of those were chosen first, and then not taken by the model's processor.
        asked: how many samples were to be chosen; 0 where nobody says how many.
        halved: how many can be used, where these are half of all that can; 0 where they are not.
        default_prompt: what all are asked because data and caller ask nothing; else empty.
    """

    name: str
    samples: tuple[Sample, ...]
    sha256: str
    skipped: int = 0
    left_out: str = ""
    refused: int = 0
    asked: int = 0
    halved: int = 0
    default_prompt: str = ""

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def note(self) -> str:
        """What is worth saying: a question of ours, what was left out, fewer samples than asked."""
        return "; ".join(filter(None, (self._question, *self._choice)))

    @property
    def held_out_note(self) -> str:
        """The same of samples that no trial sees, told beside those that trials see."""
        note = "; ".join(filter(None, self._choice))
        return f"held-out samples: {note}" if note else ""

    @property
    def _question(self) -> str:
        if not self.default_prompt:
            return ""
        kind = "video" if self.samples[0].videos else "image"
        return (
            f"no question is in the data: every {kind} is asked {self.default_prompt!r}; give "
            f"yours with --prompt"
        )

    @property
    def _choice(self) -> tuple[str, str]:
        return self.left_out, self._size

    @property
    def _size(self) -> str:
        found = len(self) + self.refused
        if self.halved:
            return (
                f"{self.halved} samples can be used, fewer than twice {self.asked}: the search "
                f"sees {found} of them, and the others about other images are held out"
            )
        if found >= self.asked:
            return ""
        rest = "no others that can be used" if self.skipped > self.refused else "no more"
        return f"{found} instead of {self.asked:,} samples: the data has {rest}"


def require_set(given: object, name: str) -> None:
    """Raise `CalibrationError`, which calls the argument by its name, for anything but a set."""
    if not isinstance(given, CalibrationSet):
        raise CalibrationError(
            f"{name} is a {type(given).__name__} but must be a CalibrationSet; make one with "
            "from_dataset or load_calibration of vflowopt_search.calibration"
        )


def usual_chat(prompt: str, num_images: int, num_videos: int) -> tuple[Turn, ...]:
    """One question, all images and then all videos before its words."""
    return (Turn("user", (Mark.IMAGE,) * num_images + (Mark.VIDEO,) * num_videos + (prompt,)),)


def count_marks(turns: Sequence[Turn], mark: Mark) -> int:
    """How many images or videos the turns have a place for."""
    return sum(turn.parts.count(mark) for turn in turns)


def fingerprint(samples: Sequence[Sample]) -> str:
    """SHA-256 over prompts, chats and decoded pixels, in order; each part follows its length."""
    digest = hashlib.sha256()
    for sample in samples:
        _feed(digest, sample.prompt)
        _feed_pixels(digest, sample.images)
        if sample.turns or sample.videos:
            # no part is as long as this says; sets without chats and videos keep their fingerprint
            digest.update(b"\xff" * 8)
            _feed_turns(digest, sample.turns)
            _feed_videos(digest, sample.videos)
    return digest.hexdigest()


def images_sha256(sample: Sample) -> str:
    """Fingerprint of all of a sample's images and video frames together, in order, pixel by pixel.

    Samples with the same one get the same from the vision encoder; those that merely share an image
    have different ones (see `shared_images.shown_images`).
    """
    digest = hashlib.sha256()
    groups: list[tuple[Image, ...]] = [sample.images, *(video.frames for video in sample.videos)]
    for group in groups:
        digest.update(f"{len(group)} pictures".encode())
        for image in group:
            digest.update(repr((image.mode, image.size)).encode())
            digest.update(image.tobytes())
    return digest.hexdigest()


def _feed_turns(digest: hashlib._Hash, turns: Sequence[Turn]) -> None:
    _feed(digest, str(len(turns)))
    for turn in turns:
        _feed(digest, f"{turn.role} {len(turn.parts)}")
        for part in turn.parts:
            _feed(digest, f"<{part.value}" if isinstance(part, Mark) else f">{part}")


def _feed_videos(digest: hashlib._Hash, videos: Sequence[Video]) -> None:
    _feed(digest, str(len(videos)))
    for video in videos:
        _feed(digest, repr((video.fps, video.timestamps, video.source_frames)))
        _feed_pixels(digest, video.frames)


def _feed_pixels(digest: hashlib._Hash, images: Sequence[Image]) -> None:
    _feed(digest, str(len(images)))
    for image in images:
        _feed(digest, f"{image.mode} {image.width} {image.height}")
        _feed(digest, image.tobytes())


def _feed(digest: hashlib._Hash, part: bytes | str) -> None:
    part = part.encode() if isinstance(part, str) else part
    digest.update(len(part).to_bytes(8, "big"))
    digest.update(part)
