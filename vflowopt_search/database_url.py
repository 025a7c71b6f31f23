"""The address of a database as it may be shown: its password is nobody's business."""

from __future__ import annotations

import re

HIDDEN = "***"
"""Stands for a password."""
# as SQLAlchemy reads `driver://user:password@host/name?password=...`
_BEFORE_HOST = re.compile(r"^(\w[\w+]*://[^:/@]*):[^@]*@")
_IN_QUERY = re.compile(r"([?&][^=&]*(?:passw|pwd|secret|token)[^=&]*=)[^&]*", re.IGNORECASE)


def without_password(url: str) -> str:
    """A database's URL with `***` for its password; anything else as it is."""
    if "://" not in url:
        return url
    return _IN_QUERY.sub(rf"\1{HIDDEN}", _BEFORE_HOST.sub(rf"\1:{HIDDEN}@", url))


def lacks_password(url: str) -> bool:
    """Whether the password of a URL was hidden, so that it opens nothing."""
    return without_password(url) == url and HIDDEN in url


def shown_words(words: list[str]) -> list[str]:
    """A command line as it may be shown, with URLs behind `--option=` too."""
    return [_shown(word) for word in words]


def _shown(word: str) -> str:
    option, equals, value = word.partition("=")
    if option.startswith("--") and equals:
        return f"{option}={without_password(value)}"
    return without_password(word)
