"""A run's study in Optuna's dashboard, with the pictures that were attached to it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from optuna.artifacts import FileSystemArtifactStore

from vflowopt_search import run_folder
from vflowopt_search.errors import StudyError
from vflowopt_search.report.runs import load_run
from vflowopt_search.report.stored import database_of
from vflowopt_search.storage import open_storage, read_journal

HOST = "127.0.0.1"


def serve(folder: Path, port: int, *, url: str | None, ready: Callable[[], None]) -> None:
    """Serve the dashboard until it is interrupted.

    Args:
        folder: the output folder of a search.
        port: on this machine alone.
        url: the database's, of a search that was given one; the one that the folder's command
            names by default.
        ready: called just before the server starts.

    Raises:
        StudyError: the dashboard is not installed, there is no study, or the port is taken.
    """
    if find_spec("optuna_dashboard") is None:
        raise StudyError(
            "optuna-dashboard is not installed; run pip install 'vflowopt-search[dashboard]', or "
            "open the run's report.html, which needs nothing"
        )
    url = url or database_of(folder)
    if load_run(folder, storage=url).restored:  # and it says what else is wrong with the folder
        raise StudyError(
            f"{folder} holds a result but no {run_folder.JOURNAL}, which the dashboard shows; "
            f"look at it with vflowopt-search report {folder}"
        )
    _refuse_taken(port)
    from optuna_dashboard import run_server

    storage = read_journal(folder / run_folder.JOURNAL) if url is None else open_storage(url)
    artifacts = folder / run_folder.ARTIFACTS
    artifacts.mkdir(exist_ok=True)  # a search that is running may bring the first one later
    ready()
    run_server(storage, host=HOST, port=port, artifact_store=FileSystemArtifactStore(artifacts))


def _refuse_taken(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise StudyError(
                f"port {port} cannot be used ({error.strerror}); give another with --port"
            ) from error
