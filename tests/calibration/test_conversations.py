"""Chats of several turns, images and videos between words, system prompts."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.calibration.data import as_bytes, choose, picture
from vflowopt_search.calibration.conversations import arranged, is_usual, single_question
from vflowopt_search.calibration.rows import Columns
from vflowopt_search.calibration.samples import Mark, Sample, Turn, Video, count_marks
from vflowopt_search.errors import CalibrationError

IMAGE, VIDEO = Mark.IMAGE, Mark.VIDEO
ALL = Columns(turns="all")
LLAVA = [
    {"from": "system", "value": "Be kind."},
    {"from": "human", "value": "<image>\nWhat is it?"},
    {"from": "gpt", "value": "A cat."},
    {"from": "tool", "value": "5"},
    {"from": "human", "value": "And how does <image> differ? "},
    {"from": "gpt", "value": "It barks."},
]
SYSTEM, FIRST = Turn("system", ("Be kind.",)), Turn("user", (IMAGE, "What is it?"))
SECOND = Turn("user", ("And how does ", IMAGE, " differ?"))


def only(row: dict[str, Any], **options: Any) -> Sample:
    (sample,) = choose([row], **options).samples
    return sample


def test_the_whole_chat_up_to_the_last_question() -> None:
    row = {"image": [picture(1), picture(2)], "conversations": LLAVA}
    sample = only(row, columns=ALL)
    assert sample.turns == (SYSTEM, FIRST, Turn("assistant", ("A cat.",)), SECOND)
    assert (sample.prompt, sample.answer) == ("And how does  differ?", "It barks.")
    assert len(sample.images) == 2
    assert only({**row, "answer": "No."}, columns=ALL).answer == "No."
    assert only({**row, "conversations": LLAVA[:5]}, columns=ALL).answer is None


def test_the_first_exchange_keeps_the_system() -> None:
    row = {"image": picture(1), "conversations": LLAVA}
    sample = only(row)
    assert sample.turns == (SYSTEM, FIRST)
    assert (sample.prompt, sample.answer) == ("What is it?", "A cat.")
    assert only({**row, "conversations": LLAVA[1:]}).turns == ()
    asked = only(row, prompt="Which animal?")
    assert asked.turns == (SYSTEM, Turn("user", (IMAGE, "Which animal?")))


def test_images_that_nobody_can_place_come_first() -> None:
    row = {"image": [picture(1), picture(2), picture(3)], "conversations": LLAVA}
    turns = only(row, columns=ALL).turns
    assert turns[1] == Turn("user", (IMAGE, IMAGE, IMAGE, "What is it?"))
    assert turns[3] == Turn("user", ("And how does  differ?",))


@pytest.mark.parametrize(
    ("prompt", "num_images", "parts"),
    [
        ("Is <image> like <image>?", 2, ("Is ", IMAGE, " like ", IMAGE, "?")),
        ("What is it? <image>", 1, ("What is it? ", IMAGE)),
        ("<image> or\n<image>\n", 2, (IMAGE, "or\n", IMAGE)),
        ("<image>\n<image> Which?", 2, None),
        ("<image>\nWhat is it?", 1, None),
        ("Is <image> like <image>?", 3, None),
        ("Is <image> like <image>?", 1, None),
        ("No mark", 2, None),
    ],
)
def test_marks_in_a_prompt(prompt: str, num_images: int, parts: Any) -> None:
    sample = only({"image": [picture(1)] * num_images, "question": prompt})
    assert sample.turns == (() if parts is None else (Turn("user", parts),))
    assert sample.prompt == prompt.replace("<image>", "").strip()


PARTS = [
    {"type": "text", "text": "First"},
    {"type": "image"},
    {"type": "text", "text": "then"},
    {"type": "text", "text": "this."},
    {"type": "image"},
]


def messages(*values: Any, key: str = "image") -> list[dict[str, Any]]:
    """A chat whose image parts carry these values themselves."""
    left = iter(values)
    content = [part | {key: next(left)} if part["type"] == "image" else part for part in PARTS]
    return [{"role": "system", "content": [PARTS[0]]}, {"role": "user", "content": content}]


def test_content_in_parts() -> None:
    expected = (
        Turn("system", ("First",)),
        Turn("user", ("First", IMAGE, "then\nthis.", IMAGE)),
    )
    one, two = picture(1), picture(2)
    address = "data:image/png;base64," + base64.b64encode(as_bytes(two)).decode()
    rows: list[dict[str, Any]] = [
        {"image": [one, two], "messages": messages(None, None)},
        {"messages": messages(one, as_bytes(two))},
        {"messages": messages({"bytes": as_bytes(one), "path": None}, address)},
        {"messages": messages(*[{"url": address}] * 2, key="image_url")},
    ]
    for row in rows:
        sample = only(row)
        assert sample.turns == expected
        assert sample.prompt == "First\nthen\nthis."
        assert sample.images[1].tobytes() == two.tobytes()
    inside = [{"bytes": as_bytes(image), "path": None} for image in (one, two)]
    table = Dataset.from_list([{"images": inside, "messages": messages(None, None)}])
    assert choose(table).samples[0].turns == expected


def test_a_damaged_picture_within_a_chat_is_told() -> None:
    rows = [{"messages": messages(picture(1), "data:image/png;base64,A")}]
    with pytest.raises(CalibrationError, match="an image is no readable image"):
        choose(rows)


def test_a_chat_without_pictures_is_skipped() -> None:
    rows = [{"messages": [{"role": "user", "content": ["Hello"]}]}, {"messages": []}]
    with pytest.raises(CalibrationError, match="no usable row: 2 rows without an image skipped"):
        choose(rows)


TEXT = st.text(st.sampled_from("ab .\n"), max_size=5)
PIECES = st.lists(st.sampled_from(["<image>", "<video>"]) | TEXT, max_size=8)


@given(PIECES, st.integers(0, 3), st.integers(0, 3))
def test_every_image_has_its_mark(pieces: list[str], images: int, videos: int) -> None:
    chat = single_question("".join(pieces))
    held = {IMAGE: images, VIDEO: videos}
    turns = arranged(chat.turns, held)
    assert {mark: count_marks(turns, mark) for mark in Mark} == held
    said = "".join(part for part in turns[0].parts if isinstance(part, str))
    if all(count_marks(chat.turns, mark) == held[mark] for mark in Mark):
        assert turns == chat.turns
    else:
        assert said.split() == chat.question.split()
    if is_usual(turns):
        order = {IMAGE: 0, VIDEO: 1}
        ranks = [2 if isinstance(part, str) else order[part] for part in turns[0].parts]
        assert ranks == sorted(ranks)
        assert ranks.count(2) <= 1


def test_turns_and_images_must_agree() -> None:
    turns = (Turn("user", ("a ", IMAGE, VIDEO, " b")),)
    with pytest.raises(
        CalibrationError,
        match=r"sample s have marks for 1 images and 1 videos, but .* 2 and 0; giv",
    ):
        Sample("s", "a b", (Image.new("RGB", (1, 1)),) * 2, turns=turns)
    Sample("s", "a b", (Image.new("RGB", (1, 1)),), turns=turns, videos=(Video(()),))
