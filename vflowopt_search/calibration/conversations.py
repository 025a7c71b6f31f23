"""Chats as data sets hold them, read as turns: LLaVA's {from, value} and {role, content}."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vflowopt_search.calibration.samples import Mark, Part, Role, Turn, count_marks

Exchange = Literal["first", "all"]
"""How much of a chat is read: its first exchange, or all up to the last question."""

WRITTEN = {"<image>": Mark.IMAGE, "<video>": Mark.VIDEO}
_ROLES: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
}


@dataclass(frozen=True)
class Chat:
    """A chat that ends with a question, and what followed it.

    Attributes:
        question: the words of the last turn.
        carried: images and videos that stand in the turns themselves rather than in a column.
    """

    turns: tuple[Turn, ...]
    question: str
    reply: str | None = None
    carried: tuple[tuple[Mark, Any], ...] = ()

    def media(self, mark: Mark) -> tuple[Any, ...]:
        """The images, or the videos, that the turns carry."""
        return tuple(value for kind, value in self.carried if kind is mark)


def is_conversation(value: Any) -> bool:
    """Whether a row's value is a list of turns rather than words."""
    return isinstance(value, list) and all(isinstance(turn, Mapping) for turn in value)


def read_chat(conversation: Sequence[Mapping[str, Any]], exchange: Exchange) -> Chat:
    """The chat up to its first question, with the system's words, or up to its last."""
    said = [(role, _content(turn)) for turn in conversation if (role := _role(turn))]
    asked = [number for number, (role, _) in enumerate(said) if role == "user"]
    if not asked:
        return Chat((), "")
    last = asked[0] if exchange == "first" else asked[-1]
    heard = [
        (role, content)
        for role, content in said[: last + 1]
        if exchange == "all" or role != "assistant"
    ]
    replies = said if exchange == "first" else said[last:]
    return Chat(
        turns=tuple(Turn(role, _parts(content)) for role, content in heard),
        question=words(said[last][1]),
        reply=next((_joined(content) for role, content in replies if role == "assistant"), None),
        carried=tuple(pair for _, content in heard for pair in _carried(content)),
    )


def single_question(prompt: Any, before: Sequence[Turn] = ()) -> Chat:
    """A chat of one question, after the system's words if `before` holds any."""
    content = [] if prompt is None else [prompt]
    system = tuple(turn for turn in before if turn.role == "system")
    return Chat((*system, Turn("user", _parts(content))), words(content))


def words(content: Sequence[Any]) -> str:
    """The words alone, without marks."""
    text = _joined(content) or ""
    for written in WRITTEN:
        text = text.replace(written, "")
    return text.strip()


def arranged(turns: tuple[Turn, ...], held: Mapping[Mark, int]) -> tuple[Turn, ...]:
    """The turns with a mark for everything that is held.

    Where marks and images (or videos) differ in number nobody knows which belongs where: then the
    marks go, and all stand at the beginning of the first question.
    """
    lost = [mark for mark in Mark if count_marks(turns, mark) != held[mark]]
    first = next((number for number, turn in enumerate(turns) if turn.role == "user"), 0)
    return tuple(
        Turn(
            turn.role,
            tuple(mark for mark in lost for _ in range(held[mark] * (number == first)))
            + _trimmed([part for part in turn.parts if part not in lost]),
        )
        for number, turn in enumerate(turns)
    )


def is_usual(turns: tuple[Turn, ...]) -> bool:
    """Whether this is one question after all its images and then all its videos."""
    if len(turns) != 1 or turns[0].role != "user":
        return False
    *marks, words = turns[0].parts or ("",)
    in_order: list[Part] = [mark for mark in Mark for _ in range(marks.count(mark))]
    return isinstance(words, str) and marks == in_order


def _role(turn: Mapping[str, Any]) -> Role | None:
    """Who speaks; None for tools and others, whose words are left out."""
    return _ROLES.get(str(turn.get("from") or turn.get("role")))


def _content(turn: Mapping[str, Any]) -> list[Any]:
    """What a turn says, as a list of its parts."""
    content = turn.get("value") if turn.get("value") is not None else turn.get("content")
    if content is None:
        return []
    return list(content) if isinstance(content, list | tuple) else [content]


def _kind(part: Any) -> Mark | None:
    """Whether a part is an image or a video; None for words."""
    kind = str(part.get("type")) if isinstance(part, Mapping) else "text"
    return next((mark for mark in Mark if mark.value in kind), None)


def _text(part: Any) -> str:
    return str(part.get("text") or "") if isinstance(part, Mapping) else str(part)


def _joined(content: Sequence[Any]) -> str | None:
    texts = [_text(part) for part in content if _kind(part) is None]
    return "\n".join(text for text in texts if text) if content else None


def _parts(content: Sequence[Any]) -> tuple[Part, ...]:
    """Words and marks in their order; neighbouring words are one part."""
    parts: list[Part] = []
    for part in content:
        mark = _kind(part)
        pieces = [mark] if mark else re.split(f"({'|'.join(WRITTEN)})", _text(part))
        fresh = [WRITTEN.get(p, p) if isinstance(p, str) else p for p in pieces if p]
        if parts and fresh and isinstance(parts[-1], str) and isinstance(fresh[0], str):
            fresh[0] = f"{parts.pop()}\n{fresh[0]}"
        parts += fresh
    return _trimmed(parts)


def _trimmed(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Without blanks at both ends of a turn's words, and with neighbouring words in one."""
    merged: list[Part] = []
    for part in parts:
        if merged and isinstance(part, str) and isinstance(merged[-1], str):
            merged[-1] += part
        else:
            merged.append(part)
    spoken = [i for i, part in enumerate(merged) if isinstance(part, str) and part.strip()]
    kept: list[Part] = []
    for i, part in enumerate(merged):
        if isinstance(part, Mark):
            kept.append(part)
        elif spoken and spoken[0] <= i <= spoken[-1]:
            kept.append(part.lstrip() if i == spoken[0] else part)
    if kept and isinstance(kept[-1], str):
        kept[-1] = kept[-1].rstrip()
    return tuple(kept)


def _carried(content: Sequence[Any]) -> list[tuple[Mark, Any]]:
    """Images and videos that the parts of a turn hold themselves."""
    pairs = [(mark, _value(part, mark)) for part in content if (mark := _kind(part))]
    return [(mark, value) for mark, value in pairs if value is not None]


def _value(part: Mapping[str, Any], mark: Mark) -> Any:
    """A PIL image, bytes, a path or frames; what a data address holds is decoded."""
    keys = (mark.value, f"{mark.value}_url", "path", "url", "bytes", "base64")
    key = next((key for key in keys if part.get(key) is not None), None)
    value = part[key] if key else None
    if isinstance(value, Mapping) and value.get("url"):  # OpenAI's {"image_url": {"url": ...}}
        value = value["url"]
    if isinstance(value, str) and (key == "base64" or value.startswith("data:")):
        try:
            return base64.b64decode(value.partition(",")[2] or value)
        except binascii.Error:
            return b""  # is refused as no image
    return value
