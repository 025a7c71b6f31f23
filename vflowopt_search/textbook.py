"""What is said where a search found nothing better than a textbook strategy that it tried first."""

from __future__ import annotations


def unbeaten(textbook: str | None) -> str:
    """The sentence; empty where the best strategy is none of the textbook.

    Args:
        textbook: name of the textbook strategy that the best trial measured.
    """
    if textbook is None:
        return ""
    return f"No trial beat the textbook strategy `{textbook}`: the strategy file holds that one."
