"""Which commit of this package is running, where it runs from a checkout."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
_DESCRIBE = ("git", "--no-optional-locks", "describe", "--always", "--abbrev=12", "--dirty=+")


@cache
def commit(root: Path = _ROOT) -> str | None:
    """The commit of the checkout, with `+` where files differ from it; None outside of one.

    A package that is installed inside somebody else's checkout is outside of its own.
    """
    if not (root / ".git").exists():
        return None
    # `describe` would name the commit by a tag, which may move
    command = [*_DESCRIBE, "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    except OSError:  # no git
        return None
    return done.stdout.strip() or None
