"""What was measured so far, one line of JSON after the other: a run that was killed goes on.

A *heading* line says once what a number of measurements have in common (strategy, weights,
settings); each later line is one measured item under its heading. A kill loses the line that was
being written and no other: what is no whole JSON is skipped, and reading changes nothing, since
another process may be writing that very line.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from vflowopt_search.documents import digest
from vflowopt_search.errors import EvaluationError


class Ledger:
    """Measurements by heading and item, kept in a file as they are made."""

    def __init__(self, path: Path | None = None) -> None:
        """Read what is there.

        Args:
            path: a JSONL file, made when something is added; None keeps everything in memory.

        Raises:
            EvaluationError: a line is not one of ours, or the file cannot be read.
        """
        self.path = path
        self._headings: set[str] = set()
        self._items: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
        if path is not None and path.exists():
            self._read(path)

    def heading(self, content: Mapping[str, Any]) -> str:
        """The heading for measurements that depend on `content`; the same for the same content."""
        name = digest(content)
        if name not in self._headings:
            self._append([{"heading": name, **content}])
            self._headings.add(name)
        return name

    def known(self, heading: str, item: str) -> dict[str, Any] | None:
        """What was measured of an item under a heading; None if nothing was."""
        return self._items[heading].get(item)

    def add(self, heading: str, measured: Mapping[str, Mapping[str, Any]]) -> None:
        """Keep what was measured of some items; on disk when this returns.

        Raises:
            EvaluationError: the file cannot be written.
        """
        lines = [{"under": heading, "item": item, **each} for item, each in measured.items()]
        self._append(lines)
        self._items[heading] |= {item: dict(each) for item, each in measured.items()}

    def _append(self, lines: list[dict[str, Any]]) -> None:
        if self.path is None:
            return
        text = "".join(
            json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines
        )
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as file:
                file.write(_line_end(file) + text.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise EvaluationError(
                f"{self.path} cannot be written ({error.strerror}); make room, or choose another "
                "folder with --output"
            ) from error

    def _read(self, path: Path) -> None:
        try:
            lines = path.read_bytes().split(b"\n")[:-1]  # the last is empty or torn
        except OSError as error:
            raise EvaluationError(f"{path} cannot be read ({error}); remove it") from error
        for number, line in enumerate(lines, start=1):
            if _is_torn(line):
                continue
            try:
                self._file(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise EvaluationError(
                    f"{path} line {number} is not a measurement of ours ({error!r}); remove the "
                    "line, or choose another folder with --output"
                ) from error

    def _file(self, line: dict[str, Any]) -> None:
        if "heading" in line:
            self._headings.add(line["heading"])
            return
        self._items[line.pop("under")][line.pop("item")] = line


def _line_end(file: IO[bytes]) -> bytes:
    """What ends a line that a kill cut off; nothing where the file ends in a whole one."""
    if file.seek(0, os.SEEK_END) == 0:
        return b""
    file.seek(-1, os.SEEK_END)
    return b"" if file.read(1) == b"\n" else b"\n"


def _is_torn(line: bytes) -> bool:
    """Whether this is the beginning of a line of ours: a mapping that was never closed."""
    if not line.startswith(b"{"):
        return not line
    try:
        json.loads(line)
    except ValueError:
        return True
    return False
