"""Processes that run or have ended, by their names: owners of trials and of locks."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from vflowopt_search.processes import is_alive, is_gone, this_process

T = TypeVar("T")


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


def wait_until(happened: Callable[[], T], process: subprocess.Popen[Any] | None = None) -> T:
    """What `happened` returns once it is true, within two minutes and while `process` runs."""
    deadline = time.monotonic() + 120
    while not (found := happened()):
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None
        time.sleep(0.01)
    return found


def ended_process() -> str:
    """The name of a process that has ended."""
    with running_process() as name:
        assert is_alive(name) and not is_gone(name)
    return name
