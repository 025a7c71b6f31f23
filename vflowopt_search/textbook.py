"""What is said where a search found nothing better than a textbook strategy that it tried first."""

from __future__ import annotations


def unbeaten(textbook: str | None) -> str:
    """The sentence; empty where the best strategy is none of the textbook, or nothing else ran.

    Args:
        textbook: what `trials.unbeaten_textbook` gives.
    """
    if textbook is None:
        return ""
    return f"No trial beat the textbook strategy `{textbook}`: the strategy file holds that one."
