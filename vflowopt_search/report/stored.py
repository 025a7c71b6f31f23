"""Where the study of a run's folder is: in its journal, or in a database."""

from __future__ import annotations

import shlex
from itertools import pairwise
from pathlib import Path

import optuna
from optuna import Study

from vflowopt_search import run_folder
from vflowopt_search.database_url import lacks_password, without_password
from vflowopt_search.errors import StudyError
from vflowopt_search.storage import open_storage, read_journal, sqlite_file

STORAGE = "--storage"
"""The option of a search whose study is in a database."""


def database_of(folder: Path) -> str | None:
    """The database that the command in a run's folder names; None where the study is a file.

    Raises:
        StudyError: the command is none, or the password of its database is not in it.
    """
    command = folder / run_folder.COMMAND
    if not command.is_file():
        return None
    try:
        words = shlex.split(command.read_text("utf-8"))
    except ValueError as error:
        raise StudyError(f"{command} is no command line ({error}); remove it") from error
    url = dict(pairwise(words)).get(STORAGE)
    if url is not None and lacks_password(url):
        raise StudyError(
            f"the study of {folder} is in {url}, whose password is not kept; give the whole URL "
            f"with {STORAGE}"
        )
    return url


def only_study(folder: Path, url: str | None) -> Study:
    """The study of a folder; in a database, the one that is called after the folder.

    Args:
        folder: the output folder of a search.
        url: the database's; None where the study is in the folder.

    Raises:
        StudyError: there is no study, or not exactly one, or it cannot be opened.
    """
    if url is not None:
        return _in_database(folder, url)
    journal = folder / run_folder.JOURNAL
    if not journal.is_file():
        raise StudyError(
            f"{folder} has neither {run_folder.JOURNAL} nor {run_folder.TRIALS}; give the output "
            f"folder of a search, or the study's database with --storage"
        )
    storage = read_journal(journal)
    names = optuna.get_all_study_names(storage)
    if len(names) != 1:
        raise StudyError(
            f"{journal} holds {len(names)} studies but a run has one; give another folder"
        )
    return optuna.load_study(study_name=names[0], storage=storage)


def _in_database(folder: Path, url: str) -> Study:
    """The study that is called after the folder."""
    file, name = sqlite_file(url), folder.resolve().name
    if file is not None and not file.is_file():  # opening would make it
        raise StudyError(_unreachable(folder, url, f"there is no file {file.resolve()}"))
    try:
        storage = open_storage(url)
    except StudyError as error:
        raise StudyError(_unreachable(folder, url, str(error))) from error
    if name not in optuna.get_all_study_names(storage):
        raise StudyError(_unreachable(folder, url, f"the database has no study {name!r}"))
    return optuna.load_study(study_name=name, storage=storage)


def _unreachable(folder: Path, url: str, reason: str) -> str:
    """The sentence for a study that its database does not give."""
    kept = (folder / run_folder.TRIALS).is_file() and (folder / run_folder.COMMAND).is_file()
    alone = f", or remove {run_folder.COMMAND} to show {run_folder.TRIALS} alone"
    return (
        f"the study of {folder} should be in {without_password(url)}, but {reason}; give the "
        f"folder of its search, and its database with {STORAGE}{alone if kept else ''}"
    )
