"""Which rows of a data set become the calibration samples: chosen by seed, the unusable skipped."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

from vflowopt_search.calibration.images import open_image
from vflowopt_search.calibration.refusals import MOST_UNUSABLE, first_ids
from vflowopt_search.calibration.rows import Columns, Record, read_record
from vflowopt_search.calibration.samples import CalibrationSet, Sample, Video, fingerprint
from vflowopt_search.calibration.shared_images import apart
from vflowopt_search.calibration.sources import Rows, as_rows, open_rows
from vflowopt_search.calibration.video import check_frame_choice, read_video
from vflowopt_search.errors import CalibrationError, NothingLeftError

GUESSED = Columns()
DEFAULT_PROMPT = "Describe the {}."


def load_calibration(
    source: str | Path,
    *,
    split: str | None = None,
    columns: Columns = GUESSED,
    num_samples: int = 256,
    seed: int = 0,
    prompt: str | None = None,
    frames: int | None = None,
    fps: float | None = None,
    skip: int = 0,
    strict: bool = False,
    halve: bool = False,
) -> CalibrationSet:
    """Choose samples from a file, a folder or a hub data set (see `sources.open_rows`).

    `prompt` replaces what the rows ask; bare images are asked "Describe the image.". Of a video
    `frames` are taken, 8 by default, or `fps` a second (see `read_video`). Only chosen rows are
    decoded. The first `skip` that would be chosen are passed over: with as many as another call
    asked for, the sets are disjoint. Rows that cannot be read are left out, counted and named in
    the set's `note`; `strict` stops at the first. Where fewer than twice `num_samples` can be used,
    `halve` takes half of them, whole images where it can, so that others are left to be held out
    (see `shared_images.without_images_of`). Raises `CalibrationError` when source, columns or more
    than a fifth of the rows are unusable.
    """
    rows, folder = open_rows(source, split)
    choice = _Choice(rows, columns, prompt, folder, num_samples, seed, frames, fps, skip, strict)
    return choice.make_half(str(source)) if halve else choice.make(str(source))


def from_dataset(
    dataset: Any,
    *,
    name: str,
    columns: Columns = GUESSED,
    num_samples: int = 256,
    seed: int = 0,
    prompt: str | None = None,
    folder: Path | None = None,
    frames: int | None = None,
    fps: float | None = None,
    skip: int = 0,
    strict: bool = False,
    halve: bool = False,
) -> CalibrationSet:
    """Choose samples from a `datasets.Dataset` or a list of mappings, as `load_calibration` does.

    `name` is what records call the set; relative paths start at `folder`. Raises
    `CalibrationError` when rows, columns, images or videos are unusable.
    """
    rows = as_rows(dataset)
    choice = _Choice(rows, columns, prompt, folder, num_samples, seed, frames, fps, skip, strict)
    return choice.make_half(name) if halve else choice.make(name)


def order(num_rows: int, seed: int) -> list[int]:
    """All row numbers, shuffled by hashing: rows added later do not reorder the rest."""
    return sorted(
        range(num_rows), key=lambda row: hashlib.blake2b(f"{seed} {row}".encode()).digest()
    )


class _Unreadable(NamedTuple):
    """A row that cannot be read: its place in the data, its name, and why."""

    place: int
    name: str
    fault: str


@dataclass
class _Choice:
    """One pass over the shuffled rows, and the tally of what was skipped on the way."""

    rows: Rows
    columns: Columns
    prompt: str | None
    folder: Path | None
    num_samples: int
    seed: int
    frames: int | None
    fps: float | None
    skip: int = 0
    strict: bool = False
    default_prompt: str = ""
    unreadable: list[_Unreadable] = field(default_factory=list, init=False)
    without_image: int = field(default=0, init=False)
    without_question: int = field(default=0, init=False)

    def make(self, name: str) -> CalibrationSet:
        """The set, or a `CalibrationError` that says why there is none."""
        if self.num_samples < 1:
            raise CalibrationError(f"{self.num_samples} samples were asked for; ask for at least 1")
        check_frame_choice(self.frames, self.fps)
        if not len(self.rows):
            raise CalibrationError(f"{name} is empty; give a data set with at least one row")
        self._resolve_columns(name)
        samples = tuple(self._usable(name))
        self._require_most_readable(self.skip + len(samples), name)
        if not samples:
            kind = NothingLeftError if self.skip else CalibrationError
            told = self._left_out() or f"{len(self.rows)} were passed over"
            raise kind(f"{name} has no usable row{' left' * bool(self.skip)}: {told}")
        skipped = len(self.unreadable) + self.without_image + self.without_question
        return CalibrationSet(
            name,
            samples,
            fingerprint(samples),
            skipped,
            self._left_out(),
            asked=self.num_samples,
            default_prompt=self.default_prompt,
        )

    def make_half(self, name: str) -> CalibrationSet:
        """The set, or half of all usable samples where they are fewer than twice what was asked."""
        chosen = self.make(name)
        if self._has_complete_rows(2 * self.num_samples):
            return chosen
        usable = replace(self, num_samples=2 * self.num_samples).make(name)
        if len(usable) == usable.asked:
            return chosen
        half, others = apart(usable.samples, ceil(len(usable) / 2))
        if not others:
            return chosen
        return replace(
            usable,
            samples=half,
            sha256=fingerprint(half),
            asked=self.num_samples,
            halved=len(usable),
        )

    def _resolve_columns(self, name: str) -> None:
        existing = self.rows.column_names
        self.columns = self.columns.resolve(existing)
        if self.prompt is None and self.columns.prompt is None:
            if not set(existing) <= {self.columns.image, self.columns.video, "label"}:
                raise CalibrationError(
                    f"no column of {name} looks like a question; name one of "
                    f"{', '.join(existing)} with --columns prompt=NAME, or give one for all with "
                    "--prompt"
                )
            self.default_prompt = DEFAULT_PROMPT.format("image" if self.columns.image else "video")
            self.prompt = self.default_prompt

    def _usable(self, name: str) -> Iterator[Sample]:
        found = 0
        for index in order(len(self.rows), self.seed):
            sample = self._read(index)
            if sample is not None:
                found += 1
                if found > self.skip:
                    yield sample
            if found == self.skip + self.num_samples:
                return
            # past this point no remaining row could bring the share back under the limit
            self._require_most_readable(self.skip + self.num_samples, name)

    def _read(self, index: int) -> Sample | None:
        """The sample in a row; None, and a count, where it cannot be used."""
        name = str(index + 1)
        try:
            record = read_record(self.rows.row(index), self.columns, self.prompt)
            name = name if record.id is None else record.id
            if not record.images and not record.videos:
                self.without_image += 1
                return None
            if not record.prompt:
                self.without_question += 1
                return None
            return self._decode(record, name)
        except CalibrationError as error:
            if self.strict:
                raise CalibrationError(
                    f"row {name} cannot be used, and strict is to stop at the first: {error}"
                ) from error
            self.unreadable.append(_Unreadable(index, name, str(error)))
            return None

    def _has_complete_rows(self, number: int) -> bool:
        """Whether so many rows have an image and a question, as far as none is decoded."""
        rows = filter(self._is_complete, order(len(self.rows), self.seed))
        return sum(1 for _ in islice(rows, number)) == number

    def _is_complete(self, index: int) -> bool:
        try:
            record = read_record(self.rows.row(index), self.columns, self.prompt)
        except CalibrationError:
            return False
        return bool((record.images or record.videos) and record.prompt)

    def _decode(self, record: Record, name: str) -> Sample:
        return Sample(
            name,
            record.prompt,
            tuple(open_image(image, self.folder) for image in record.images),
            record.answer,
            record.group,
            record.turns,
            tuple(self._video(video) for video in record.videos),
            answers=record.answers,
            options=record.options,
        )

    def _video(self, video: Any) -> Video:
        return read_video(video, frames=self.frames, fps=self.fps, folder=self.folder)

    def _require_most_readable(self, num_readable: int, name: str) -> None:
        num_unreadable = len(self.unreadable)
        if num_unreadable > MOST_UNUSABLE * (num_unreadable + num_readable):
            raise CalibrationError(
                f"{num_unreadable} {_rows(num_unreadable)} of {name} cannot be read "
                f"({self._unreadable_names}), "
                f"more than {MOST_UNUSABLE:.0%} of those tried; fix the data set (the first: "
                f"{min(self.unreadable).fault})"
            )

    @property
    def _unreadable_names(self) -> str:
        """In the order of the file, whatever the order in which they were tried."""
        return first_ids(row.name for row in sorted(self.unreadable))

    def _left_out(self) -> str:
        unreadable = ""
        if self.unreadable:
            first = min(self.unreadable).fault
            unreadable = (
                f"{_rows(len(self.unreadable))} that cannot be read skipped: "
                f"{self._unreadable_names} (the first: {first})"
            )
        parts = [
            (self.without_image, f"{_rows(self.without_image)} without an image skipped"),
            (self.without_question, f"{_rows(self.without_question)} without a question skipped"),
            (len(self.unreadable), unreadable),
        ]
        return "; ".join(f"{count} {words}" for count, words in parts if count)


def _rows(count: int) -> str:
    return "row" if count == 1 else "rows"
