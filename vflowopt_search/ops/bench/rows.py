"""One line per op, size and way: what it says, and the table that it is kept in."""

from __future__ import annotations

import csv
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from vflowopt_search.checkout import commit
from vflowopt_search.ops.bench.cases import Case
from vflowopt_search.ops.bench.timing import Ceilings, Times

COPY_UNIT = "GB/s"


@dataclass(frozen=True)
class Setup:
    """Where and with what rows were measured."""

    date: str
    commit: str
    device: str
    torch: str
    triton: str
    python: str


@dataclass(frozen=True)
class Row:
    """One way of one op at one size; without times it did not fit into memory.

    Attributes:
        way: "kernel", "definition" or "eager".
        p20, p50, p80: milliseconds.
        rate: what was achieved, in `unit`.
        bound_ms: time of what `bound` names.
        share: of the bound that was reached, bound_ms / p50.
        share_of_card: rate by that of a large copy, or of a large product, on this card.
        map_mib: of the attention map in fp32 that the eager way holds at least, beside `peak_mib`.
    """

    op: str
    sizes: str
    way: str
    p20: float | None
    p50: float | None
    p80: float | None
    peak_mib: float | None
    rate: float | None
    unit: str
    bound: str
    bound_ms: float
    share: float | None
    share_of_card: float | None
    map_mib: float | None

    def __str__(self) -> str:
        """One line for a terminal."""
        head = f"{self.op}, {self.sizes}: {self.way:<10}"
        apart = "" if self.map_mib is None else f"; the whole map takes {self.map_mib:.0f} MiB"
        if self.p50 is None or self.rate is None or self.share is None:
            return f"{head} out of memory{apart}"
        line = f"{head} {self.p50:.4f} ms, {self.rate:.1f} {self.unit}"
        line += f", {self.share:.0%} of {self.bound}"
        large = "copy" if self.unit == COPY_UNIT else "product"
        return (
            f"{line} ({self.share_of_card:.0%} of a large {large}), {self.peak_mib:.0f} MiB{apart}"
        )


def row(case: Case, way: str, taken: Times | None, bound_ms: float, card: Ceilings) -> Row:
    """What the times mean; None where memory was not enough."""
    copying = case.bound == "copy"
    rate = None if taken is None else case.amount / taken.p50 / (1e6 if copying else 1e9)
    ceiling = card.copy_gb_s if copying else card.product_tflop_s
    return Row(
        op=case.op,
        sizes=case.sizes,
        way=way,
        p20=None if taken is None else taken.p20,
        p50=None if taken is None else taken.p50,
        p80=None if taken is None else taken.p80,
        peak_mib=None if taken is None else taken.peak_mib,
        rate=rate,
        unit=COPY_UNIT if copying else "TFLOP/s",
        bound="a copy of as many bytes" if copying else "fused attention",
        bound_ms=bound_ms,
        share=None if taken is None else bound_ms / taken.p50,
        share_of_card=None if rate is None else rate / ceiling,
        map_mib=None if case.map_bytes is None else case.map_bytes / 2**20,
    )


def setup_of(device: torch.device) -> Setup:
    """This machine and this checkout."""
    name = "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    python = platform.python_version()
    return Setup(now, commit() or "unknown", name, torch.__version__, _version("triton"), python)


def append(path: Path, setup: Setup, rows: Sequence[Any]) -> None:
    """Add rows, dataclasses all of one kind, to a table, which is begun where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        names = [field.name for kind in (setup, rows[0]) for field in fields(kind)]
        table = csv.DictWriter(file, names)
        if is_new:
            table.writeheader()
        table.writerows(asdict(setup) | asdict(one) for one in rows)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
