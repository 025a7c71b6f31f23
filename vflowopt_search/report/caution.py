"""What a search says, on the terminal and in the report, where a baseline beats what it found."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from vflowopt_search.report.measured import UNPRUNED
from vflowopt_search.report.words import FOUND

_PLACES = {"divergence": "", "held_out": " on held-out samples"}
"""The divergences that are compared, and where they were measured."""
ROUNDING = 1e-6
"""Relative; means of one strategy over the same samples, in other batches, differ by less."""


class Divergences(Protocol):
    """A strategy's name and its mean divergences; None where not measured."""

    @property
    def name(self) -> str:
        """Of the strategy."""

    @property
    def divergence(self) -> float | None:
        """Over the samples of the search."""

    @property
    def held_out(self) -> float | None:
        """Over samples that no trial saw."""


def beaten(rows: Iterable[Divergences]) -> str:
    """A sentence where a baseline is closer to the unpruned model than the strategy found.

    Args:
        rows: the strategies compared; one named `unpruned` is no strategy.

    Returns:
        The sentence, without a full stop; empty where no baseline is closer.
    """
    named = {row.name: row for row in rows if row.name != UNPRUNED}
    found = named.pop(FOUND, None)
    if found is None:
        return ""
    closer = [
        f"{row.name}{place} ({theirs:.4g}, found {ours:.4g})"
        for column, place in _PLACES.items()
        for row in named.values()
        if (theirs := getattr(row, column)) is not None
        and (ours := getattr(found, column)) is not None
        and theirs < ours * (1 - ROUNDING)
    ]
    if not closer:
        return ""
    return (
        f"baselines are closer to the unpruned model than the strategy found: {', '.join(closer)}; "
        "search with more trials and samples before you deploy it"
    )
