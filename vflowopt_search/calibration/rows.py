"""What a row of a data set means: which columns hold image, question and answer, and how."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from vflowopt_search.errors import CalibrationError

IMAGE_MARK = "<image>"
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
}
_HUMAN, _MODEL = ("human", "user"), ("gpt", "assistant", "model")


@dataclass(frozen=True)
class Columns:
    """Names of the columns that hold each part of a sample; None is guessed from usual names."""

    image: str | None = None
    prompt: str | None = None
    answer: str | None = None
    id: str | None = None
    group: str | None = None

    def resolve(self, existing: Sequence[str]) -> Columns:
        """These columns with every None guessed; what is absent and may be absent stays None.

        Raises `CalibrationError` when a named column is absent or no image column can be guessed.
        """
        return Columns(
            **{f.name: _find(f.name, getattr(self, f.name), existing) for f in fields(self)}
        )


@dataclass(frozen=True)
class Record:
    """One row by meaning, its images not yet decoded."""

    prompt: str
    images: tuple[Any, ...]
    answer: str | None
    id: str | None
    group: str | None


def read_record(row: Mapping[str, Any], columns: Columns, prompt: str | None) -> Record:
    """Read a row; `prompt`, where given, stands in for whatever the row asks."""
    asked: Any = row.get(columns.prompt) if columns.prompt else None
    question, reply = _first_turns(asked) if _is_conversation(asked) else (asked, None)
    answer = row.get(columns.answer) if columns.answer else None
    return Record(
        prompt=_without_marks(prompt if prompt is not None else question),
        images=_as_images(row.get(columns.image or "")),
        answer=_as_answer(reply if answer is None else answer),
        id=_as_text(row.get(columns.id or "")),
        group=_as_text(row.get(columns.group or "")),
    )


def _find(part: str, named: str | None, existing: Sequence[str]) -> str | None:
    if named is not None:
        if named in existing:
            return named
        raise CalibrationError(
            f"there is no column {named!r} for the {part}; the columns are {', '.join(existing)}"
        )
    by_lower = {name.lower(): name for name in reversed(existing)}
    guess = next((by_lower[name] for name in USUAL[part] if name in by_lower), None)
    if guess is None and part == "image":
        raise CalibrationError(
            f"no column looks like an image; name one of {', '.join(existing)} as the image column"
        )
    return guess


def _is_conversation(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(turn, Mapping) for turn in value)


def _first_turns(turns: Sequence[Mapping[str, Any]]) -> tuple[str | None, str | None]:
    """First words of the human and of the model: LLaVA's {from, value} or {role, content}."""
    said: dict[str, str | None] = {}
    for turn in turns:
        speaker = str(turn.get("from", turn.get("role")))
        part = "human" if speaker in _HUMAN else "model" if speaker in _MODEL else speaker
        said.setdefault(part, _spoken(turn.get("value", turn.get("content"))))
    return said.get("human"), said.get("model")


def _spoken(content: Any) -> str | None:
    """Words of a turn; content in parts is joined without its images."""
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content if part.get("text"))
    return _as_text(content)


def _without_marks(prompt: Any) -> str:
    """The words alone: where images stand is decided when a prompt is encoded."""
    return "" if prompt is None else str(prompt).replace(IMAGE_MARK, "").strip()


def _as_images(value: Any) -> tuple[Any, ...]:
    several = value if isinstance(value, list | tuple) else [value]
    return tuple(image for image in several if not _is_no_image(image))


def _is_no_image(value: Any) -> bool:
    if isinstance(value, Mapping):
        return not value.get("bytes") and not value.get("path")
    return value is None or value == ""


def _as_answer(value: Any) -> str | None:
    """One answer; of several annotators' answers the most frequent."""
    if isinstance(value, list | tuple):
        several = [entry.get("answer") if isinstance(entry, Mapping) else entry for entry in value]
        return _as_text(Counter(several).most_common(1)[0][0]) if several else None
    return _as_text(value)


def _as_text(value: Any) -> str | None:
    return None if value is None else str(value)
