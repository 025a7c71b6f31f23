"""Processes that run or have ended, by their names: owners of trials and of locks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vflowopt_search.processes import is_alive, is_gone, this_process


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)


def name_of(child: subprocess.Popen[bytes]) -> str:
    start = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19]
    host, _, own = this_process().rsplit(":", 2)
    return f"{host}:{child.pid}:{own.split('/')[0]}/{start}"


@contextmanager
def running_process() -> Iterator[str]:
    """The name of another process that runs inside the block."""
    child = sleeper()
    try:
        yield name_of(child)
    finally:
        child.communicate()


def ended_process() -> str:
    """The name of a process that has ended."""
    with running_process() as name:
        assert is_alive(name) and not is_gone(name)
    return name
