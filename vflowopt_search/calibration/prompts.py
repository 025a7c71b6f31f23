"""A sample's chat as one text: by the processor's template, images and videos at their places."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from vflowopt_search.calibration.samples import Mark, Part, Sample, Turn, count_marks
from vflowopt_search.errors import ModelError

if TYPE_CHECKING:
    from transformers import ProcessorMixin


def prompt_text(processor: ProcessorMixin, sample: Sample) -> str:
    """The whole prompt as text: chat template if there is one, images where the chat has them.

    Raises:
        ModelError: the template leaves images or videos out.
    """
    if not processor.chat_template:
        return _plain(processor, sample)
    turns = sample.chat
    inner = [{mark for mark in Mark if _after_words(turn, mark)} for turn in turns]
    moved = {mark for mark in set().union(*inner) if _moves(processor, mark)}
    turns = tuple(
        _written_out(processor, turn, marks & moved)
        for turn, marks in zip(turns, inner, strict=True)
    )
    prompt = _render(processor, turns)
    for mark in Mark:
        if count_marks(turns, mark) and prompt == _render(processor, _without(turns, mark)):
            raise ModelError(
                f"the chat template of {type(processor).__name__} leaves {mark.value}s out; give "
                f"the processor a template that places them"
            )
    return prompt


def _plain(processor: ProcessorMixin, sample: Sample) -> str:
    """Without a template: tokens at their places, a line for every turn."""
    if sample.turns:
        turns = [_written_out(processor, turn, list(Mark)) for turn in sample.turns]
        return "\n".join("".join(map(str, turn.parts)) for turn in turns)
    marks = sample.chat[0].parts[:-1]
    return "".join(_token(processor, mark) for mark in Mark for _ in range(marks.count(mark))) + (
        "\n" + sample.prompt
    )


def _after_words(turn: Turn, mark: Mark) -> bool:
    """Whether a mark of this kind has words before it."""
    words = [number for number, part in enumerate(turn.parts) if isinstance(part, str)]
    return bool(words) and mark in turn.parts[words[0] :]


def _moves(processor: ProcessorMixin, mark: Mark) -> bool:
    """Whether the template takes an image from between two words, as many do, to the front."""

    def between(*parts: Part) -> str:
        rendered = _render(processor, [Turn("user", ("alpha", *parts, "omega"))])
        return rendered.partition("alpha")[2].partition("omega")[0]

    return between(mark) == between()


def _written_out(processor: ProcessorMixin, turn: Turn, marks: Collection[Mark]) -> Turn:
    """The turn with the processor's own tokens, as words, in place of these marks."""
    if not any(mark in turn.parts for mark in marks):
        return turn
    pieces: list[Part] = []
    for part in turn.parts:
        piece = _token(processor, part) if isinstance(part, Mark) and part in marks else part
        if pieces and isinstance(piece, str) and isinstance(pieces[-1], str):
            pieces[-1] += piece
        else:
            pieces.append(piece)
    return Turn(turn.role, tuple(pieces))


def _without(turns: Sequence[Turn], mark: Mark) -> list[Turn]:
    return [Turn(turn.role, tuple(p for p in turn.parts if p is not mark)) for turn in turns]


def _render(processor: ProcessorMixin, turns: Sequence[Turn]) -> str:
    chat: Any = processor
    messages = [
        {
            "role": turn.role,
            "content": [
                {"type": part.value} if isinstance(part, Mark) else {"type": "text", "text": part}
                for part in turn.parts
            ],
        }
        for turn in turns
    ]
    try:
        rendered: str = chat.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
    except TemplateError as error:
        raise ModelError(
            f"the chat template of {type(processor).__name__} refuses a chat of the roles "
            f"{', '.join(turn.role for turn in turns)} ({error}); leave out what it does not take"
        ) from error
    return rendered


def _token(processor: ProcessorMixin, mark: Mark) -> str:
    token = getattr(processor, f"{mark.value}_token", None)
    if not isinstance(token, str):
        lack = "a chat template that keeps places" if processor.chat_template else "a chat template"
        kind = {Mark.IMAGE: "an image", Mark.VIDEO: "a video"}[mark]
        raise ModelError(
            f"{type(processor).__name__} has neither {lack} nor {kind} token; give it {lack}"
        )
    return token
