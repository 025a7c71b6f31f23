"""One part of the page: words, tables and figures, or what stands in place of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

TABS = {
    "compare": "Compare",
    "summary": "Summary",
    "search": "Search",
    "strategy": "Strategy",
    "parameters": "Parameters",
    "samples": "Samples",
    "overlays": "Overlays",
}
"""Key of each tab and its name, in the order of the page."""


@dataclass(frozen=True)
class Section:
    """One part of a tab.

    Attributes:
        key: of its figures; unique in a run.
        tab: one of `TABS`.
        title: heading.
        text: what is to be seen.
        figures: plotly figures, side by side where there are several.
        before: HTML that stands above the figures.
        after: HTML that stands below them.
        caution: what to keep in mind, where that matters.
        instead: the sentence that stands in place of everything where there is nothing.
        way: the command that adds what is missing.
    """

    key: str
    tab: str
    title: str
    text: str
    figures: Sequence[go.Figure] = ()
    before: str = ""
    after: str = ""
    caution: str = ""
    instead: str = ""
    way: str = ""

    @property
    def empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.figures or self.before or self.after)
