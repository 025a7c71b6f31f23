"""Accuracy and speed that other commands measured, as rows beside the divergences.

Both files are read for what the report shows and nothing else: a file of another version, or one
that lacks a field, gives no row rather than a wrong one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

EVALUATION = "vflowopt-evaluation/1"
BENCHMARK = "vflowopt-benchmark/1"
Rows = dict[str, dict[str, Any]]


def accuracy_of(evaluation: Mapping[str, Any]) -> Rows:
    """Accuracy, and the share of the whole model's that is kept, by strategy."""
    return {}


def speed_of(benchmark: Mapping[str, Any]) -> Rows:
    """Speed-up of the first token, and bytes of the cache, by strategy."""
    return {}
