"""What was measured is read again, also after a kill in the middle of a line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vflowopt_search.errors import EvaluationError
from vflowopt_search.evaluate.ledger import Ledger


def written(path: Path) -> str:
    """A ledger of two items under one heading; returns the heading."""
    ledger = Ledger(path)
    heading = ledger.heading({"strategy": None, "tokens": 8})
    ledger.add(heading, {"a": {"text": "réd"}, "b": {"text": ""}})
    return heading


def test_what_was_kept_is_known_again(tmp_path: Path) -> None:
    heading = written(tmp_path / "new" / "kept.jsonl")
    again = Ledger(tmp_path / "new" / "kept.jsonl")
    assert again.heading({"tokens": 8, "strategy": None}) == heading
    assert again.known(heading, "a") == {"text": "réd"}
    assert again.known(heading, "c") is None
    assert again.known(again.heading({"tokens": 9, "strategy": None}), "a") is None
    assert len((tmp_path / "new" / "kept.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize("cut", [2, 7, 24])
def test_a_line_that_was_cut_off_is_forgotten(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "kept.jsonl"
    heading = written(path)
    torn = path.read_bytes()[:-cut]
    path.write_bytes(torn)
    again = Ledger(path)
    assert again.known(heading, "a") == {"text": "réd"}
    assert again.known(heading, "b") is None
    assert path.read_bytes() == torn  # another process may be about to write the rest
    again.add(heading, {"b": {"text": ""}})
    assert Ledger(path).known(heading, "b") == {"text": ""}
    assert path.read_bytes().startswith(torn + b"\n{")


def test_a_line_cut_inside_a_letter_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    heading = written(path)
    path.write_bytes(path.read_bytes().partition(b"\xc3")[0] + b"\xc3")
    again = Ledger(path)
    assert again.known(heading, "a") is None
    again.add(heading, {"a": {"text": "réd"}})
    assert Ledger(path).known(heading, "a") == {"text": "réd"}


def test_a_heading_cut_behind_an_inner_brace_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    content = {"strategy": {"stages": {"layer": 3}}, "tokens": 8}
    name = Ledger(path).heading(content)
    path.write_bytes(path.read_bytes().partition(b"}")[0] + b"}")
    again = Ledger(path)
    assert again.heading(content) == name
    assert json.loads(path.read_text().splitlines()[-1]) == {"heading": name, **content}


def test_a_line_that_another_process_is_writing_is_left_to_it(tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    heading = written(path)
    whole = path.read_bytes()
    with path.open("ab") as other:
        line = b'{"under": "' + heading.encode() + b'", "item": "c", "text": "x"}\n'
        other.write(line[:20])
        other.flush()
        Ledger(path)
        other.write(line[20:])
    assert path.read_bytes() == whole + line


@pytest.mark.parametrize("line", ["no json", "[1]", '{"item": "a"}', '{"under": 1}', '"x"'])
def test_a_strange_line_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "kept.jsonl"
    written(path)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(EvaluationError, match=r"kept.jsonl line 4 is not a measurement of ours"):
        Ledger(path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ledger = Ledger(tmp_path / "file" / "kept.jsonl")
    with pytest.raises(EvaluationError, match=r"cannot be written .*--output"):
        ledger.heading({})


def test_without_a_file_it_is_kept_in_memory() -> None:
    ledger = Ledger()
    heading = ledger.heading({})
    ledger.add(heading, {"a": {"x": 1}})
    assert ledger.known(heading, "a") == {"x": 1}


def test_lines_say_what_they_are_about(tmp_path: Path) -> None:
    heading = written(tmp_path / "kept.jsonl")
    first, second, _ = map(json.loads, (tmp_path / "kept.jsonl").read_text().splitlines())
    assert first == {"heading": heading, "strategy": None, "tokens": 8}
    assert second == {"under": heading, "item": "a", "text": "réd"}
