"""What is told of an exception of another package."""

from __future__ import annotations

import pytest

from vflowopt_search.errors import first_line


@pytest.mark.parametrize(
    ("said", "told"),
    [("no such file\nat line 3", "no such file"), ("\n  \nat last", "at last"), ("", "OSError")],
)
def test_the_first_line_that_says_something_or_else_the_name(said: str, told: str) -> None:
    assert first_line(OSError(said)) == told
