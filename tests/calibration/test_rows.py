"""Which columns hold what, and the layouts of conversations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature

from tests.calibration.data import as_bytes, choose, picture, rows, table, write_jsonl
from vflowopt_search.calibration.choice import load_calibration
from vflowopt_search.calibration.rows import Columns
from vflowopt_search.errors import CalibrationError


def test_named_columns() -> None:
    odd = table().rename_columns({"image": "foto", "question": "frage"})
    columns = Columns(image="foto", prompt="frage", answer="question_id", group="answer")
    (sample,) = choose(odd, columns=columns, num_samples=1).samples
    assert sample.prompt.startswith("How many")
    assert (sample.answer, sample.group) == (sample.id, sample.id.removeprefix("q"))


def test_class_labels_are_told_by_name() -> None:
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["no", "yes"])})
    content = [{"image": {"bytes": as_bytes(picture(1))}, "label": 1}]
    (sample,) = choose(Dataset.from_list(content, features=features)).samples
    assert sample.answer == "yes"


def test_the_most_frequent_of_several_answers() -> None:
    plain = {"image": picture(1), "question": "?", "answers": ["a", "b", "b"]}
    nested = plain | {"answers": [{"answer": "c", "who": 1}, {"answer": "c", "who": 2}]}
    empty = plain | {"answers": []}
    answers = [choose([row]).samples[0].answer for row in (plain, nested, empty)]
    assert answers == ["b", "c", None]


def test_all_answers_of_several_are_kept() -> None:
    plain = {"image": picture(1), "question": "?"}
    told: list[tuple[Any, tuple[str, ...]]] = [
        (["a", "b", "b"], ("a", "b", "b")),
        ([{"answer": "c", "who": 1}, {"answer": "d"}], ("c", "d")),
        ({"answer": ["e", "f"]}, ("e", "f")),
        ({"text": ["g"], "start": [3]}, ("g",)),
        (["h", None], ("h",)),
        ("i", ("i",)),
        (7, ("7",)),
        (None, ()),
    ]
    for value, truths in told:
        (sample,) = choose([plain | {"answers": value}]).samples
        assert sample.truths == truths
        assert (sample.answer is None) == (not truths)


@pytest.mark.parametrize(
    "row",
    [
        {"options": ["red", "blue"]},
        {"choices": "['red', 'blue']"},
        {"choices": {"text": ["red", "blue"], "label": ["A", "B"]}},
        {"A": "red", "B": "blue", "C": None},
        {"A": "red", "B": "blue", "C": "", "D": "not after a gap"},
    ],
)
def test_options_of_multiple_choice(row: dict[str, Any]) -> None:
    content = {"image": picture(1), "question": "?", "answer": 1} | row
    (sample,) = choose([content]).samples
    assert sample.options == ("red", "blue")
    assert sample.answer == "B"


@pytest.mark.parametrize("row", [{"options": "red or blue"}, {"A": "red"}, {"options": "[red"}])
def test_what_is_no_list_of_options(row: dict[str, Any]) -> None:
    (sample,) = choose([{"image": picture(1), "question": "?", "answer": 1} | row]).samples
    assert (sample.options, sample.answer) == ((), "1")


LLAVA = [
    {"from": "human", "value": "<image>\nWhat is it?"},
    {"from": "gpt", "value": "A cat."},
    {"from": "human", "value": "And then?"},
    {"from": "gpt", "value": "Nothing."},
]
CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
    {"role": "assistant", "content": "A cat."},
]


@pytest.mark.parametrize("turns", [LLAVA, CHAT])
def test_conversations(turns: list[dict[str, Any]], tmp_path: Path) -> None:
    # ids of mixed types and rows of different columns, as in LLaVA's own files
    content: list[dict[str, Any]] = [
        {"id": 7, "image": "images/1.png", "conversations": turns},
        {"id": "b", "image": ["images/2.png", "images/3.png"], "conversations": turns},
        {"id": "text only", "conversations": turns},
    ]
    loaded = load_calibration(write_jsonl(tmp_path, content), num_samples=3)
    assert sorted((s.id, len(s.images)) for s in loaded.samples) == [("7", 1), ("b", 2)]
    assert {(s.prompt, s.answer) for s in loaded.samples} == {("What is it?", "A cat.")}
    assert loaded.skipped == 1
    assert "1 row without an image skipped" in loaded.note


def test_line_separators_within_strings(tmp_path: Path) -> None:
    content = [row | {"question": "first\u2028second"} for row in rows()]
    file = write_jsonl(tmp_path)
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in content), "utf-8")
    assert load_calibration(file).samples[0].prompt == "first\u2028second"


def test_conversations_inside_a_data_set() -> None:
    content = [{"image": {"bytes": as_bytes(picture(1))}, "conversations": LLAVA}]
    (sample,) = choose(Dataset.from_list(content)).samples
    assert (sample.prompt, sample.answer) == ("What is it?", "A cat.")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            {"picture_of_it": "a", "question": "?"},
            "no column looks like an image; name one of pict.* --columns image=NAME",
        ),
        (
            {"text": "?"},
            "no column looks like an image: the only one is 'text'; give data with images, or say "
            "--columns image=text if it holds them",
        ),
        ({"image": "a", "foo": "?"}, "no column of test looks like a question; .* image, foo with"),
    ],
)
def test_no_such_column_by_guess(content: dict[str, str], sentence: str) -> None:
    with pytest.raises(CalibrationError, match=sentence):
        choose([content])


def test_no_such_column_by_name() -> None:
    sentence = "there is no column 'frage' for the prompt; the columns are question_id, image, que"
    with pytest.raises(CalibrationError, match=sentence):
        choose(table(), columns=Columns(prompt="frage"))
