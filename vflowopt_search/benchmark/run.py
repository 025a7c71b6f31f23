"""The unpruned and the pruned model in alternation, on every kind of prompt asked for."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vflowopt_search import __version__
from vflowopt_search.adapters.base import Adapter
from vflowopt_search.adapters.registry import adapter_for
from vflowopt_search.benchmark.plan import Plan, Progress
from vflowopt_search.benchmark.prompts import SEED, Prompts
from vflowopt_search.benchmark.records import Benchmark, Row
from vflowopt_search.benchmark.rows import Rows, nothing_freed, nothing_removed
from vflowopt_search.checkout import commit
from vflowopt_search.errors import BenchmarkError
from vflowopt_search.pruning.occupied import refuse_if_pruned
from vflowopt_search.strategy import Strategy


def benchmark(
    model: nn.Module,
    strategy: Strategy,
    prompts: Prompts,
    plan: Plan | None = None,
    *,
    name: str | None = None,
    random_weights: bool = False,
    progress: Progress | None = None,
    on_row: Callable[[Benchmark], None] | None = None,
) -> Benchmark:
    """Measure a model with and without a strategy.

    Both sides answer the same prompts in alternation, after a warm-up, so that other load on the
    machine affects both. Memory is measured in answers that are not timed.

    Args:
        model: a loaded model of a supported family.
        strategy: what to compare with the unpruned model.
        prompts: makes its inputs.
        plan: what to measure.
        name: what the model is called in the file.
        random_weights: whether its weights are random.
        progress: called with (answers given, answers in total).
        on_row: called after each row with the benchmark of the rows until then, once one of them
            compares the two sides.

    Raises:
        BenchmarkError: the strategy removed nothing from any prompt, so that there is nothing to
            compare.
        UnsupportedError: the model cannot do what the strategy asks, or is pruned already.
    """
    refuse_if_pruned(model)
    plan, adapter = plan or Plan(), adapter_for(model)
    bench = Rows(adapter, strategy, plan, progress)
    about = _about(adapter, name) | {"random_weights": random_weights, "prompt": prompts.origin}
    rows: list[Row] = []
    found: Benchmark | None = None
    for count, size in plan.kinds:
        rows.append(bench.row(prompts.batch(count, size), size))
        if rows[-1].note not in (nothing_removed(strategy), nothing_freed(strategy)) or found:
            found = Benchmark(
                strategy=strategy.name,
                strategy_sha256=strategy.content_sha256(),
                new_tokens=plan.new_tokens,
                repeats=plan.repeats,
                kinds=len(plan.kinds),
                rows=tuple(rows),
                **about,
            )
            if on_row is not None:
                on_row(found)
    if found is None:
        raise BenchmarkError(str(rows[0].note))
    return found


def _about(adapter: Adapter, name: str | None) -> dict[str, Any]:
    """Model, machine and versions."""
    config, backbone = adapter.config, adapter.backbone
    running = commit()
    return {
        "model": name or str(getattr(config, "_name_or_path", "")) or adapter.model_type,
        "model_type": adapter.model_type,
        "device": _device_name(backbone.device),
        "threads": torch.get_num_threads(),
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "attention": str(backbone.config._attn_implementation),
        "weight_bytes": sum(p.numel() * p.element_size() for p in adapter.model.parameters()),
        "seed": SEED,
        "versions": {
            "vflowopt-search": __version__,
            **({} if running is None else {"commit": running}),
            **{package: version(package) for package in ("torch", "transformers")},
            "python": platform.python_version(),
        },
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({_cpu_model() or platform.machine()})"


def _cpu_model() -> str | None:
    """The CPU as Linux names it; None elsewhere, and where it does not."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return None
    found = re.search(r"^model name\s*:\s*(\S.*)$", text, re.MULTILINE)
    return None if found is None else found[1].strip()
