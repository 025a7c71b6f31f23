"""Times of a call, by the clock of the device, with cold caches; and what bounds them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from vflowopt_search.ops.bench.cases import Case

REPETITIONS = 50
CACHE_BYTES = 2**28  # more than the L2 cache of any GPU
LARGE_COPY_BYTES = 2**30
LARGE_SIDE = 8192  # of the matrices in a large product


@dataclass(frozen=True)
class Times:
    """Milliseconds that a fifth, half and four fifths of the repetitions stayed under; peak MiB."""

    p20: float
    p50: float
    p80: float
    peak_mib: float


def times(
    call: Callable[[], object], device: torch.device, repetitions: int = REPETITIONS
) -> Times:
    """Time `call`, but not its first run, and find the memory that it takes on top."""
    call()
    if device.type == "cpu":
        return _quantiles([_seconds(call) * 1e3 for _ in range(repetitions)], 0.0)
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    peak = torch.cuda.max_memory_allocated(device) - before
    cache = torch.empty(CACHE_BYTES, dtype=torch.uint8, device=device)
    events = []
    for _ in range(repetitions):
        # Empties the cache, and keeps the device busy while Python launches what is timed.
        cache.zero_()
        start, end = _event(), _event()
        start.record()
        call()
        end.record()
        events.append((start, end))
    torch.cuda.synchronize(device)
    return _quantiles([start.elapsed_time(end) for start, end in events], peak / 2**20)


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _quantiles(milliseconds: list[float], peak_mib: float) -> Times:
    fifths = statistics.quantiles(milliseconds, n=5, method="inclusive")
    return Times(fifths[0], statistics.median(milliseconds), fifths[-1], peak_mib)


def bound(case: Case, device: torch.device) -> Callable[[], object]:
    """The call that the op is held against: a copy of as many bytes, or fused attention."""
    if case.bound == "copy":
        return _copy(int(case.amount), device)
    query_BHQD, key_BHND = case.arguments[:2]
    value_BHND = torch.randn_like(key_BHND)
    return lambda: scaled_dot_product_attention(query_BHQD, key_BHND, value_BHND)


@dataclass(frozen=True)
class Ceilings:
    """What the card really does: GB/s of a large copy, TFLOP/s of a large product."""

    copy_gb_s: float
    product_tflop_s: float


def ceilings(device: torch.device) -> Ceilings:
    """Measure them; on a CPU, where the program is only tried, with small ones."""
    if device.type == "cpu":
        return Ceilings(copy_bandwidth(device, 2**20), product_rate(device, 256))
    return Ceilings(copy_bandwidth(device), product_rate(device))


def product_rate(device: torch.device, side: int = LARGE_SIDE) -> float:
    """TFLOP/s of a product of two square matrices in the type that the cases have there."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    left, right = torch.randn(2, side, side, device=device).to(dtype)
    return 2 * side**3 / times(lambda: left @ right, device, 10).p50 / 1e9


def copy_bandwidth(device: torch.device, num_bytes: int = LARGE_COPY_BYTES) -> float:
    """GB/s of a large copy, read and written: what the card's memory really does."""
    return num_bytes / times(_copy(num_bytes, device), device, 10).p50 / 1e6


def _copy(num_bytes: int, device: torch.device) -> Callable[[], Tensor]:
    """A copy that reads one half of `num_bytes` and writes the other."""
    source = torch.zeros(num_bytes // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)
