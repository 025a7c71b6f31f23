"""Accuracy and speed that other commands measured, as rows beside the divergences.

The files are those of `evaluate` (`vflowopt-evaluation/1`) and `bench` (`vflowopt-benchmark/1`).
What is not there, or of another version, gives no row. Names of strategies outlive what they
prune: whoever puts a row beside others compares its fingerprint and its share of tokens first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

EVALUATION = "vflowopt-evaluation/1"
BENCHMARK = "vflowopt-benchmark/1"
UNPRUNED = "unpruned"


@dataclass(frozen=True)
class Measured:
    """What one command measured of one strategy.

    Attributes:
        values: fields of a row of the report.
        strategy_sha256: fingerprint of what was pruned; None where the file does not tell.
        retained: share of the visual tokens alive, as it happened; None where it is not known.
    """

    values: dict[str, Any]
    strategy_sha256: str | None = None
    retained: float | None = None


Rows = dict[str, Measured]


def accuracy_of(evaluation: Mapping[str, Any]) -> Rows:
    """Accuracy by strategy and of the unpruned model, and the share of the latter that is kept."""
    if evaluation.get("format") != EVALUATION:
        return {}
    whole = evaluation["unpruned"]
    scored = {"scored": _scored(evaluation)}
    kept_by_whole = 1.0 if whole else None
    rows: Rows = {UNPRUNED: Measured({"accuracy": whole, "accuracy_kept": kept_by_whole, **scored})}
    for result in evaluation["strategies"]:
        kept = result["kept"]
        values = {
            "accuracy": result["accuracy"],
            "accuracy_kept": None if kept is None else kept["value"],
            "accuracy_range": None if kept is None else (kept["low"], kept["high"]),
            **scored,
        }
        sha256, retained = result.get("strategy_sha256"), result.get("retained")
        rows[result["name"]] = Measured(values, sha256, retained)
    return rows


def speed_of(benchmark: Mapping[str, Any]) -> Rows:
    """Speed-up of the time to first token and bytes of the KV cache, and under which conditions.

    Of several prompts measured, those of the largest one, at the smallest batch.
    """
    measured = [row for row in benchmark.get("rows", ()) if row["unpruned"] and row["pruned"]]
    if benchmark.get("format") != BENCHMARK or not measured:
        return {}
    row = max(measured, key=lambda row: (row["visual_tokens"], -row["batch_size"]))
    speed_up = row["first_token_speed_up"]
    values = {
        "speedup": None if speed_up is None else speed_up["median"],
        "kv_bytes": row["pruned"]["kv_bytes"],
        "conditions": _conditions(benchmark, row),
    }
    sha256, retained = benchmark.get("strategy_sha256"), row.get("retained")
    return {
        UNPRUNED: Measured({"speedup": 1.0, "kv_bytes": row["unpruned"]["kv_bytes"]}),
        benchmark["strategy"]: Measured(values, sha256, retained),
    }


def _scored(evaluation: Mapping[str, Any]) -> str:
    """Which answers were scored, and how; an accuracy means nothing without them."""
    name = evaluation["data"]["name"]
    return f"{evaluation['samples']:,} labelled samples of {name}, {evaluation['metric']}"


def _conditions(benchmark: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """Under which a row was measured; a speed-up means nothing without them."""
    told = [f"batch size {row['batch_size']}"]
    if row.get("width") and row.get("height"):
        told.append(f"{row['width']} x {row['height']} pixels")
    told.append(f"{row['visual_tokens']:,} visual tokens")
    told += [str(benchmark[name]) for name in ("device", "dtype") if benchmark.get(name)]
    return f"{', '.join(told)}; vision encoder included"
