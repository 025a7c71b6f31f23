"""The most memory that a piece of work needs at any time."""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)
_RESET_PEAK = "5"  # Linux: sets the high-water mark of resident memory to what is held now


def peak_while(work: Callable[[], Any], device: torch.device) -> int | None:
    """Bytes at the peak of `work()`, weights included; None where it cannot be measured.

    On a GPU what torch had allocated; on a CPU, under Linux only, what the process held in memory.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return int(torch.cuda.max_memory_allocated(device))
    measurable = _start_anew()
    work()
    return _resident_peak() if measurable else None


def _start_anew() -> bool:
    """Give freed memory back and forget the process's peak; whether that can be done."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
    except (OSError, AttributeError):  # not Linux, no glibc, or not permitted
        return False
    return _resident_peak() is not None


def _resident_peak() -> int | None:
    found = _PEAK.search(Path("/proc/self/status").read_text())
    return None if found is None else int(found[1]) * 1024
