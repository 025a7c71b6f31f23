"""The whole and the pruned model by turns, on every kind of prompt asked for."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib.metadata import version

import torch
from torch import nn

from vflowopt_search import __version__
from vflowopt_search.adapters.registry import adapter_for
from vflowopt_search.benchmark.plan import Plan, Progress
from vflowopt_search.benchmark.prompts import Prompts
from vflowopt_search.benchmark.records import Benchmark
from vflowopt_search.benchmark.rows import Rows, nothing_removed
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
) -> Benchmark:
    """Measure a model with and without a strategy.

    Both sides answer the same prompts by turns, after a warm-up, so that what else happens on the
    machine meets both. Memory is measured in answers that are not timed.

    Args:
        model: a loaded model of a supported family.
        strategy: what to compare with the whole model.
        prompts: makes its inputs.
        plan: what to measure.
        name: what the model is called in the file.
        random_weights: whether its weights are random.
        progress: called with (answers given, answers in total).

    Raises:
        BenchmarkError: the strategy removed nothing from any prompt, so that there is nothing to
            compare.
        UnsupportedError: the model cannot do what the strategy asks, or is pruned already.
    """
    refuse_if_pruned(model)
    plan, adapter = plan or Plan(), adapter_for(model)
    bench = Rows(adapter, strategy, plan, progress)
    rows = [bench.row(prompts.batch(count, size), size) for count, size in plan.kinds]
    if all(row.note == nothing_removed(strategy) for row in rows):
        raise BenchmarkError(nothing_removed(strategy))
    return Benchmark(
        strategy=strategy.name,
        strategy_sha256=strategy.content_sha256(),
        model=name or str(getattr(adapter.config, "_name_or_path", "")) or adapter.model_type,
        model_type=adapter.model_type,
        random_weights=random_weights,
        prompt=prompts.origin,
        device=_device_name(adapter.backbone.device),
        threads=torch.get_num_threads(),
        dtype=str(adapter.backbone.dtype).removeprefix("torch."),
        attention=str(adapter.backbone.config._attn_implementation),
        weight_bytes=sum(p.numel() * p.element_size() for p in adapter.model.parameters()),
        new_tokens=plan.new_tokens,
        repeats=plan.repeats,
        versions={
            "vflowopt-search": __version__,
            **{package: version(package) for package in ("torch", "transformers")},
            "python": platform.python_version(),
        },
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        rows=tuple(rows),
    )


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()})"
