"""Files are replaced whole or not at all, also by two writers at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from vflowopt_search.documents import draft_of, replace_atomically
from vflowopt_search.report.frames import write_trials


@pytest.mark.parametrize(("content", "found"), [("né\n", "né\n".encode()), (b"\xff", b"\xff")])
def test_text_and_bytes_take_the_place_of_what_was_there(
    tmp_path: Path, content: str | bytes, found: bytes
) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    replace_atomically(target, content)
    assert target.read_bytes() == found
    assert list(tmp_path.iterdir()) == [target]


def test_a_draft_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError), draft_of(target) as draft:
        draft.write_text("half")
        raise ZeroDivisionError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_two_writers_do_not_meet_in_one_draft(tmp_path: Path) -> None:
    target = tmp_path / "file"
    with draft_of(target) as one:
        one.write_text("one")
        with draft_of(target) as two:
            two.write_text("two")
        assert target.read_text() == "two"
    assert target.read_text() == "one"


def test_a_table_that_cannot_be_written_leaves_no_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import optuna
    import pandas as pd

    def full(frame: pd.DataFrame, path: Path, **options: bool) -> None:
        Path(path).write_text("half")
        raise OSError("no space left")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", full)
    with pytest.raises(OSError, match="no space"):
        write_trials(optuna.create_study(), tmp_path / "trials.parquet")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", [Path(), Path("/"), Path("sub")])
def test_a_folder_is_no_file_to_write(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    with pytest.raises(IsADirectoryError):
        replace_atomically(target, "text")
    assert [path.name for path in tmp_path.iterdir()] == ["sub"]
