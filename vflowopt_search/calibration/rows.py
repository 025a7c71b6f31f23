"""What a row of a data set means: which columns hold image, question and answer, and how."""

from __future__ import annotations

from ast import literal_eval
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from string import ascii_uppercase
from typing import Any

from vflowopt_search.calibration.conversations import (
    Exchange,
    arranged,
    is_conversation,
    is_usual,
    read_chat,
    single_question,
)
from vflowopt_search.calibration.images import is_picture
from vflowopt_search.calibration.samples import Mark, Turn
from vflowopt_search.errors import CalibrationError

CONVERSATIONS = ("conversations", "conversation", "messages")
USUAL = {
    "image": ("image", "images", "img", "image_path", "image_file", "file_name", "picture", "jpg"),
    "prompt": ("question", "prompt", "text", "query", "instruction", "problem", *CONVERSATIONS),
    "answer": (
        "answer",
        "answers",
        "multiple_choice_answer",
        "label",
        "response",
        "output",
        "caption",
    ),
    "id": ("id", "question_id", "sample_id", "uid", "index", "idx"),
    "group": ("group", "category", "question_type", "type", "task", "kind", "topic"),
    "video": ("video", "videos", "video_path", "video_file", "clip", "mp4"),
    "options": ("options", "choices", "candidates"),
}
LETTERED = ("A", "B", "C", "D", "E", "F", "G", "H")
"""Columns that hold the options of a multiple-choice question one by one."""


@dataclass(frozen=True)
class Columns:
    """Names of the columns that hold each part of a sample; None is guessed from usual names.

    Attributes:
        video: a file, a folder of frames or a list of them.
        options: a list of what a multiple-choice question offers; columns A, B, ... do as well.
        turns: of a column of conversations the first exchange, or all up to the last question.
    """

    image: str | None = None
    prompt: str | None = None
    answer: str | None = None
    id: str | None = None
    group: str | None = None
    video: str | None = None
    turns: Exchange = "first"
    options: str | None = None

    def resolve(self, existing: Sequence[str]) -> Columns:
        """These columns with every None guessed; what is absent and may be absent stays None.

        Raises `CalibrationError` when a named column is absent or no column can hold images.
        """
        found = Columns(
            **{part: _find(part, getattr(self, part), existing) for part in USUAL}, turns=self.turns
        )
        # turns may carry their images themselves
        if not (found.image or found.video or str(found.prompt).lower() in CONVERSATIONS):
            if len(existing) == 1:
                raise CalibrationError(
                    f"no column looks like an image: the only one is {existing[0]!r}; give data "
                    f"with images, or say --columns image={existing[0]} if it holds them"
                )
            raise CalibrationError(
                f"no column looks like an image; name one of {', '.join(existing)} with --columns "
                f"image=NAME"
            )
        return found


@dataclass(frozen=True)
class Record:
    """One row by meaning, its images and videos not yet decoded; `turns` as those of a `Sample`."""

    prompt: str
    images: tuple[Any, ...]
    answer: str | None
    id: str | None
    group: str | None
    turns: tuple[Turn, ...] = ()
    videos: tuple[Any, ...] = ()
    answers: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


def read_record(row: Mapping[str, Any], columns: Columns, prompt: str | None) -> Record:
    """Read a row; `prompt`, where given, stands in for whatever the row asks."""
    asked: Any = row.get(columns.prompt) if columns.prompt else None
    chat = read_chat(asked, columns.turns) if is_conversation(asked) else single_question(asked)
    images = _as_images(row.get(columns.image or "")) or chat.media(Mark.IMAGE)
    videos = _as_videos(row.get(columns.video or "")) or chat.media(Mark.VIDEO)
    answer = row.get(columns.answer) if columns.answer else None
    answer = chat.reply if answer is None else answer
    if prompt is not None:
        chat = single_question(prompt, chat.turns)
    options = _as_options(row, columns.options)
    answers = _as_answers(answer, options)
    turns = arranged(chat.turns, {Mark.IMAGE: len(images), Mark.VIDEO: len(videos)})
    return Record(
        prompt=chat.question,
        images=images,
        answer=Counter(answers).most_common(1)[0][0] if answers else None,
        id=_as_text(row.get(columns.id or "")),
        group=_as_text(row.get(columns.group or "")),
        turns=() if is_usual(turns) else turns,
        videos=videos,
        answers=answers if len(answers) > 1 else (),
        options=options,
    )


def _find(part: str, named: str | None, existing: Sequence[str]) -> str | None:
    if named is not None:
        if named in existing:
            return named
        raise CalibrationError(
            f"there is no column {named!r} for the {part}; the columns are {', '.join(existing)}"
        )
    by_lower = {name.lower(): name for name in reversed(existing)}
    return next((by_lower[name] for name in USUAL[part] if name in by_lower), None)


def _as_images(value: Any) -> tuple[Any, ...]:
    several = value if isinstance(value, list | tuple) else [value]
    return tuple(image for image in several if not _is_no_image(image))


def _as_videos(value: Any) -> tuple[Any, ...]:
    """Videos of a row: one, or a list of them; a list of pictures is the frames of one."""
    if isinstance(value, list | tuple) and value:
        return (list(value),) if all(is_picture(one) for one in value) else tuple(value)
    return () if _is_no_image(value) else (value,)


def _is_no_image(value: Any) -> bool:
    if isinstance(value, Mapping):
        return not value.get("bytes") and not value.get("path")
    return value is None or (isinstance(value, str) and not value)


def _as_answers(value: Any, options: Sequence[str]) -> tuple[str, ...]:
    """All answers of a row, by one annotator or by several; a number among options is a letter."""
    if isinstance(value, Mapping):  # {"answer": [...]}, {"text": [...]}
        value = value.get("answer", value.get("text"))
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(options):
        return (ascii_uppercase[value],)
    several = value if isinstance(value, list | tuple) else [value]
    each = [entry.get("answer") if isinstance(entry, Mapping) else entry for entry in several]
    return tuple(str(one) for one in each if one is not None)


def _as_options(row: Mapping[str, Any], column: str | None) -> tuple[str, ...]:
    """What a multiple-choice question offers: a list, a list as text, or columns A, B, ..."""
    value = row.get(column) if column else None
    if isinstance(value, str) and value.startswith("["):
        try:
            value = literal_eval(value)  # as in MMMU
        except (ValueError, SyntaxError):
            return ()
    if isinstance(value, Mapping):  # {"text": [...], "label": [...]}
        value = value.get("text")
    if not isinstance(value, list | tuple):
        value = list(takewhile(lambda one: one not in (None, ""), map(row.get, LETTERED)))
        value = value if len(value) > 1 else []
    return tuple(map(str, value))[: len(ascii_uppercase)]


def _as_text(value: Any) -> str | None:
    return None if value is None else str(value)
