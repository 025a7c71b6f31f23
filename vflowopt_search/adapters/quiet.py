"""No bars of other libraries while files at hand are read; those of a download stay."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def without_bars() -> Iterator[None]:
    """Let transformers draw no bar inside the `with` block; afterwards as before."""
    from transformers.utils import logging

    ours: Any = logging  # annotated in part only
    hub = ours.hf_hub_utils  # which transformers switches along with its own
    hub_is_off = hub.are_progress_bars_disabled()
    try:
        with switched_off(
            lambda: not ours.is_progress_bar_enabled(),
            ours.disable_progress_bar,
            ours.enable_progress_bar,
        ):
            yield
    finally:
        if hub_is_off:
            _without_warnings(hub.disable_progress_bars)


@contextmanager
def switched_off(
    is_off: Callable[[], bool], switch_off: Callable[[], None], switch_on: Callable[[], None]
) -> Iterator[None]:
    """Bars are off inside the `with` block, and on again after it unless they were off before."""
    if is_off():
        yield
        return
    _without_warnings(switch_off)
    try:
        yield
    finally:
        _without_warnings(switch_on)


def _without_warnings(switch: Callable[[], None]) -> None:
    """Libraries warn where a variable, as HF_HUB_DISABLE_PROGRESS_BARS, has the say."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        switch()
