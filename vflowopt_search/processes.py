"""Who owns a running trial or a lock: a process, named so that its death can be told."""

from __future__ import annotations

import os
import platform
from functools import lru_cache
from pathlib import Path

_OUTERMOST = 0xEFFFFFFC
"""Number of the process namespace that every Linux starts with."""


def this_process() -> str:
    """`host:pid:start` of this process, which no other process ever has."""
    return f"{_host()}:{os.getpid()}:{_own_start(os.getpid())}"


def is_gone(owner: str) -> bool:
    """Whether the named process has certainly ended; of another host that cannot be told."""
    return _is_here(owner) and not is_alive(owner)


def is_alive(owner: str) -> bool:
    """Whether the named process certainly runs, on this host."""
    if not _is_here(owner):
        return False
    _, pid, start = owner.rsplit(":", 2)
    return _start(int(pid)) == start


def is_of_another_boot(owner: str) -> bool:
    """Whether the process ran before this host's last start, or on another host of its name."""
    start = owner.rsplit(":", 1)[-1]
    return _is_here(owner) and "/" in start and start.split("/")[0] != _boot()


def _is_here(owner: str) -> bool:
    host, _, process = owner.partition(":")
    pid, _, start = process.partition(":")
    return host == _host() and pid.isdigit() and start != ""


@lru_cache
def _host() -> str:
    """The host, and within a container the container: its numbers say nothing of processes outside.

    Containers may share a host's name.
    """
    try:
        space = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return platform.node()
    return platform.node() if space == _OUTERMOST else f"{platform.node()}/{space}"


@lru_cache
def _own_start(pid: int) -> str:
    start = _start(pid)
    assert start is not None  # we run
    return start


def _start(pid: int) -> str | None:
    """What distinguishes a process from a later one with its id; None when it has ended."""
    try:
        # Fields after the command in brackets, from `state` on (proc(5)); 22 is the start time.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return _start_without_proc(pid)
    return None if fields[0] in "ZX" else f"{_boot()}/{fields[19]}"


def _start_without_proc(pid: int) -> str | None:
    """The same where there is no /proc, or none of this process: only whether it runs."""
    if Path("/proc/self/stat").exists():
        return None
    if os.name != "posix":  # os.kill would end the process
        return "unknown"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:  # it runs, as somebody else
        pass
    return "unknown"


@lru_cache
def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
