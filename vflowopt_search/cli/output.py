"""Where results go: looked at before the work begins, made when there is something to keep."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vflowopt_search import run_folder
from vflowopt_search.errors import StudyError, VFlowOptError

FILES = (".csv", ".html", ".json", ".jsonl", ".parquet")
"""Endings that nobody gives a folder."""


def check_folder(folder: Path | None, option: str) -> None:
    """Refuse, before any work, a folder that cannot hold results; makes nothing.

    Args:
        folder: need not be there yet; None is one that we choose.
        option: that it was named with.

    Raises:
        StudyError: it is a file, or it cannot be made or written.
    """
    if folder is None:
        return
    with _looking_at(folder, option):
        places = (folder.absolute(), *folder.absolute().parents)
        there = next(one for one in places if _is_there(one))
        is_new = there != places[0]
    if not there.is_dir():
        raise StudyError(f"{option} is {folder} but {there} is a file; name a folder")
    if folder.suffix in FILES and is_new:
        raise StudyError(
            f"{option} is {folder}, which looks like a file, but several go there; name a folder"
        )
    _check_writable(there, folder, option)


def check_file(file: Path | None, option: str) -> None:
    """Refuse, before any work, a file that cannot be written.

    Args:
        file: None is none, or one that we choose.
        option: that it was named with.

    Raises:
        StudyError: it is a folder, or in none that is there and can be written to.
    """
    if file is None:
        return
    with _looking_at(file, option):
        is_folder = _is_there(file) and file.is_dir()
    if is_folder:
        raise StudyError(f"{option} is {file}, which is a folder; name a file in it")
    folder = file.absolute().parent
    if not folder.is_dir():
        raise StudyError(f"{option} is {file} but there is no folder {folder}; make it first")
    _check_writable(folder, file, option)


@contextmanager
def output_folder(folder: Path) -> Iterator[None]:
    """Make a folder of results; when the block is refused, nothing new and empty stays behind.

    Raises:
        StudyError: the folder cannot be made.
    """
    try:
        made = [one for one in (folder, *folder.parents) if not _is_there(one)]
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StudyError(
            f"the output folder {folder} cannot be made ({error.strerror}); choose another "
            f"with --output"
        ) from error
    try:
        yield
    except (VFlowOptError, KeyboardInterrupt):
        if made:
            _clear(folder, made)
        raise


@contextmanager
def _looking_at(named: Path, option: str) -> Iterator[None]:
    """A name that no file can have, or one in a folder that is closed to us, told as a sentence."""
    try:
        yield
    except OSError as error:
        raise StudyError(
            f"{option} is {named}, which cannot be looked up ({error.strerror}); choose another "
            f"place"
        ) from error


def _is_there(path: Path) -> bool:
    """What `Path.exists` says, which differs between Pythons where it cannot be told."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _check_writable(there: Path, named: Path, option: str) -> None:
    if not os.access(there, os.W_OK | os.X_OK):
        raise StudyError(
            f"{option} is {named} but {there} cannot be written to; choose another place"
        )


def _clear(folder: Path, made: list[Path]) -> None:
    """Remove what was made, unless it holds more than the command that would make it again."""
    if {one.name for one in folder.iterdir()} <= {run_folder.COMMAND}:
        (folder / run_folder.COMMAND).unlink(missing_ok=True)
        for one in made:
            with suppress(OSError):  # another process has put something there meanwhile
                one.rmdir()
