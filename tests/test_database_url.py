"""A database's password is shown nowhere."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import URL

from vflowopt_search import run_folder
from vflowopt_search.cli.command_line import command_of
from vflowopt_search.cli.interrupted import typed_again
from vflowopt_search.cli.job import DataOptions, Job
from vflowopt_search.database_url import lacks_password, shown_words, without_password
from vflowopt_search.errors import StudyError
from vflowopt_search.model_source import ModelSource
from vflowopt_search.recipe import StudyRecipe
from vflowopt_search.report.stored import database_of, only_study

URLS = "postgresql+psycopg://me:s3cret@db.example:5432/studies"
SHOWN = "postgresql+psycopg://me:***@db.example:5432/studies"
NAME = st.text(string.ascii_letters + string.digits, min_size=1)


@given(driver=st.sampled_from(["postgresql", "mysql+pymysql"]), user=NAME, word=st.text(min_size=1))
def test_what_is_hidden_is_what_sqlalchemy_takes_for_the_password(
    driver: str, user: str, word: str
) -> None:
    url = URL.create(driver, user, word, "host", 5432, "studies")
    hidden = without_password(url.render_as_string(hide_password=False))
    assert hidden == url.render_as_string(hide_password=True)
    assert without_password(hidden) == hidden
    assert lacks_password(hidden)


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///study.db",
        "sqlite:////a/b@c/study.db",
        "postgresql://me@host:5432/db",
        "postgresql://host/db?user=me&sslmode=require",
        "runs/study.journal",
        "a:b@c",
    ],
)
def test_where_there_is_no_password_nothing_changes(url: str) -> None:
    assert without_password(url) == url
    assert not lacks_password(url)


def test_a_password_among_the_options_is_hidden_too() -> None:
    url = "postgresql://host/db?user=me&password=s3cret&sslmode=require"
    assert without_password(url) == "postgresql://host/db?user=me&password=***&sslmode=require"


def test_a_kept_command_has_no_password(tmp_path: Path) -> None:
    recipe = StudyRecipe.load("quickstart")
    job = Job(recipe, ModelSource(), DataOptions(), tmp_path, storage=URLS)
    assert "s3cret" not in command_of(job)
    assert f"--storage '{SHOWN}'" in command_of(job)


@pytest.mark.parametrize("typed", [["--storage", URLS], [f"--storage={URLS}"]])
def test_how_to_go_on_shows_no_password(typed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["vflowopt-search", "search", *typed, "--retain=0.1"])
    said = typed_again()
    assert "s3cret" not in said and SHOWN in said
    assert said.endswith("  (with the database's password in place of ***)")
    monkeypatch.setattr("sys.argv", ["vflowopt-search", "search", "--prompt", "a=b c"])
    assert typed_again() == "vflowopt-search search --prompt 'a=b c'"


def test_only_urls_are_changed() -> None:
    words = ["search", "--columns", "image=a,prompt=b", "--retain=0.1", "x:y@z"]
    assert shown_words(words) == words


def test_a_report_says_that_the_password_was_not_kept(tmp_path: Path) -> None:
    (tmp_path / run_folder.COMMAND).write_text(f"vflowopt-search search --storage '{SHOWN}'\n")
    said = r"me:\*\*\*@db.example.* whose password is not kept; give the whole URL with --storage"
    with pytest.raises(StudyError, match=said):
        database_of(tmp_path)


def test_a_database_that_is_not_reached_is_named_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="should be in nonsense://me") as told:
        only_study(tmp_path, "nonsense://me:s3cret@host/db")
    assert "s3cret" not in str(told.value)
