"""lmms-eval's requests in our words; none of this needs lmms-eval."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vflowopt_search.calibration.samples import Mark, Turn
from vflowopt_search.errors import CalibrationError, UnsupportedError
from vflowopt_search.integrations.lmms_eval.requests import (
    LONGEST_ANSWER,
    FrameChoice,
    Generation,
    generation_of,
    sample_of_messages,
    sample_of_text,
)

RED, BLUE = Image.new("RGB", (8, 6), "red"), Image.new("RGB", (6, 8), "blue")
FRAMES = FrameChoice(count=2)
IMAGE, VIDEO = Mark.IMAGE, Mark.VIDEO


def said(*content: Any, role: str = "user") -> dict[str, Any]:
    """A message; bare strings are words."""
    parts = [{"type": "text", "text": one} if isinstance(one, str) else one for one in content]
    return {"role": role, "content": parts}


def shown(picture: Any) -> dict[str, Any]:
    return {"type": "image", "url": picture}


# --- prompts


def test_the_usual_question_is_a_sample_as_data_sets_give_it() -> None:
    for sample in (
        sample_of_messages("7", [said(shown(RED), shown(BLUE), "how many ?")], FRAMES),
        sample_of_text("7", "how many ?", [RED, BLUE], FRAMES),
    ):
        assert (sample.id, sample.prompt, sample.turns) == ("7", "how many ?", ())
        assert [image.getpixel((0, 0)) for image in sample.images] == [(255, 0, 0), (0, 0, 255)]


def test_words_keep_their_blanks() -> None:
    assert sample_of_text("0", "\nanswer: ", [RED], FRAMES).prompt == "\nanswer: "


def test_images_stay_where_messages_have_them() -> None:
    sample = sample_of_messages("0", [said("first", shown(RED), "then", shown(BLUE))], FRAMES)
    assert sample.turns == (Turn("user", ("first", IMAGE, "then", IMAGE)),)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("<image> left , <image> right", (IMAGE, " left , ", IMAGE, " right")),
        ("left <image> of three", (IMAGE, IMAGE, "left ", " of three")),  # one mark, two images
        ("no mark", (IMAGE, IMAGE, "no mark")),
    ],
)
def test_marks_in_the_words_place_the_images_if_there_is_one_for_each(
    text: str, parts: tuple[Any, ...]
) -> None:
    assert sample_of_text("0", text, [RED, BLUE], FRAMES).chat == (Turn("user", parts),)


def test_a_chat_keeps_its_turns_and_the_system_prompt_stands_first() -> None:
    chat = [
        said("be terse", role="system"),
        said(shown(RED), "what ?"),
        said("a cat", role="assistant"),
        said("sure ?"),
    ]
    later = (
        Turn("user", (IMAGE, "what ?")),
        Turn("assistant", ("a cat",)),
        Turn("user", ("sure ?",)),
    )
    given = sample_of_messages("0", chat, FRAMES)
    assert given.turns == (Turn("system", ("be terse",)), *later)
    assert given.prompt == "sure ?"
    other = sample_of_messages("0", chat, FRAMES, system="be kind")
    assert other.turns == (Turn("system", ("be kind",)), *later)


def test_a_text_alone_and_visuals_in_lists() -> None:
    assert sample_of_text("0", "hello", [], FRAMES).images == ()
    assert len(sample_of_text("0", "hello", [[RED, None], [BLUE]], FRAMES).images) == 2


def test_pictures_and_videos_by_path(tmp_path: Path) -> None:
    RED.save(tmp_path / "red.png")
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(3):
        BLUE.save(frames / f"{number}.png")
    sample = sample_of_text("0", "what ?", [str(tmp_path / "red.png"), str(frames)], FRAMES)
    assert sample.chat == (Turn("user", (IMAGE, VIDEO, "what ?")),)
    assert [len(video.frames) for video in sample.videos] == [2]
    by_type = sample_of_messages("0", [said({"type": "video", "url": str(frames)}, "?")], FRAMES)
    assert len(by_type.videos) == 1


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"type": "audio", "url": "a.wav"}, "a request holds a audio"),
        ({"type": "image", "url": None}, "a request holds a image"),
        (3, "a request holds a int"),
        ({"type": "video", "url": "a.mp4", "start_time": 1.0}, "from one time to another"),
    ],
)
def test_what_is_not_shown_is_refused(content: Any, sentence: str) -> None:
    with pytest.raises(UnsupportedError, match=sentence):
        sample_of_messages("0", [said("what ?") | {"content": [content]}], FRAMES)


def test_a_missing_picture_is_named() -> None:
    with pytest.raises(CalibrationError, match=r"nowhere\.png is no readable image"):
        sample_of_text("0", "what ?", ["nowhere.png"], FRAMES)


# --- generation settings


def test_a_task_without_settings_is_greedy() -> None:
    generation = generation_of({})
    assert generation.options == {
        "max_new_tokens": LONGEST_ANSWER,
        "do_sample": False,
        "num_beams": 1,
        "temperature": None,
        "top_p": None,
        "top_k": None,
    }
    assert generation.until == ()


@pytest.mark.parametrize(
    ("settings", "samples", "temperature"),
    [
        ({"temperature": 0.7, "do_sample": True}, True, 0.7),
        ({"temperature": 0.7}, True, 0.7),
        ({"temperature": 0.7, "do_sample": False}, False, None),
        ({"temperature": 0, "do_sample": True}, False, None),
        ({"temperature": None, "do_sample": False}, False, None),
    ],
)
def test_sampling_takes_a_temperature(
    settings: dict[str, Any], samples: bool, temperature: float | None
) -> None:
    options = generation_of(settings | {"top_p": 0.9}).options
    assert options["do_sample"] is samples
    assert options["temperature"] == temperature
    assert options["top_p"] == (0.9 if samples else None)


def test_other_settings_are_passed_on_or_named() -> None:
    generation = generation_of(
        {
            "max_new_tokens": 16,
            "num_beams": 3,
            "repetition_penalty": 1.2,
            "until": "\n\n",
            "stop_sequences": ["###", ""],
            "image_aspect_ratio": "original",
            "visual_cot": None,
        }
    )
    wanted = {"max_new_tokens": 16, "num_beams": 3, "repetition_penalty": 1.2}
    assert wanted.items() <= generation.options.items()
    assert generation.until == ("\n\n", "###")
    assert generation.ignored == ("image_aspect_ratio",)


@given(st.text("ab#", max_size=12), st.lists(st.text("ab#", min_size=1, max_size=3), max_size=3))
def test_an_answer_ends_at_its_first_stop_string(answer: str, until: list[str]) -> None:
    cut = Generation({}, tuple(until)).cut(answer)
    assert answer.startswith(cut)
    assert not any(stop in cut for stop in until)
    if cut != answer:
        assert answer[len(cut) :].startswith(tuple(until))
