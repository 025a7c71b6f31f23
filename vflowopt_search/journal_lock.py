"""The lock of a study's journal: it names its owner, so that a dead one holds nobody up."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from optuna.storages.journal import JournalFileOpenLock

from vflowopt_search.processes import is_alive, is_gone, is_of_another_boot, this_process

UNSIGNED_LOCK_SECONDS = 5
"""A lock is held for one append; one that is older was left behind if its owner cannot be told."""
FOREIGN_LOCK_SECONDS = 30
"""The same of an owner on another host, by our own clock: it may be slow."""
_LONGEST_PAUSE = 0.25


class SignedFileLock(JournalFileOpenLock):
    """Optuna's lock file with its owner written in it, so that a dead owner's lock is removed.

    Optuna's own lock waits half a minute for an owner that a `kill -9` has ended.
    """

    def acquire(self) -> bool:
        """Take the lock, waiting for a living owner, also for one that dies meanwhile."""
        lock, pause = Path(self._lock_file), 0.001
        seen, since = _seen(lock), time.monotonic()
        while not _made(lock):
            remove_if_left_behind(lock)
            now = _seen(lock)
            if now != seen:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since > FOREIGN_LOCK_SECONDS and not _is_held_here(now):
                _remove(lock, lambda: _seen(lock) == seen)  # noqa: B023 - called at once
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        return True

    def release(self) -> None:
        """Remove the lock; one that another has taken over meanwhile is left to it."""
        seen = _seen(Path(self._lock_file))
        if seen is not None and seen[0] == this_process():
            super().release()


def remove_if_left_behind(lock: Path) -> None:
    """Remove the lock of an owner that has ended, or one too old whose owner cannot be told."""
    if _is_left_behind(lock):
        _remove(lock, lambda: _is_left_behind(lock))


def _remove(lock: Path, is_dead: Callable[[], bool]) -> None:
    """Remove a lock that is dead still.

    Of several that saw a dead owner's lock, one at a time looks again and removes it: a second
    one would take away the lock that somebody has made meanwhile.
    """
    takeover = lock.with_name(f"{lock.name}.takeover")
    if not _made(takeover):
        if _is_left_behind(takeover):
            takeover.unlink(missing_ok=True)
        return
    try:
        if is_dead():
            lock.unlink(missing_ok=True)
    finally:
        takeover.unlink(missing_ok=True)


def _is_held_here(seen: tuple[str, float] | None) -> bool:
    """Whether another process holds the lock that certainly runs, on this host."""
    # one of our own that did not change for so long was left by Ctrl-C
    return seen is not None and seen[0] != this_process() and is_alive(seen[0])


def _is_left_behind(lock: Path) -> bool:
    seen = _seen(lock)
    if seen is None:
        return False
    owner, changed = seen
    # another host of the same name looks like this one before its last start
    if owner and not is_of_another_boot(owner):
        return is_gone(owner)
    return time.time() - changed > UNSIGNED_LOCK_SECONDS


def _seen(lock: Path) -> tuple[str, float] | None:
    """The owner of a lock, and when it was made; None where there is none."""
    try:
        return lock.read_text(encoding="utf-8"), lock.stat().st_mtime
    except FileNotFoundError:
        return None


def _made(lock: Path) -> bool:
    """Make a lock with our name in it; whether there was none."""
    try:
        lock.touch(exist_ok=False)
    except FileExistsError:
        return False
    with ExitStack() as undo:
        # a full disk, or Ctrl-C: nobody would remove a lock of ours
        undo.callback(lock.unlink, missing_ok=True)
        lock.write_text(this_process(), encoding="utf-8")
        undo.pop_all()
    return True
