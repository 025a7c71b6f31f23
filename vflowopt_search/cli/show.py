"""`show`: what a strategy file says, for people and for scripts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vflowopt_search.cli.console import print_json, stdout, table
from vflowopt_search.cli.options import Json
from vflowopt_search.strategy import Strategy

Facts = list[tuple[str, str]]


def show(
    file: Annotated[Path, typer.Argument(help="A strategy file.")],
    as_json: Json = False,
) -> None:
    """Print what a strategy file says: stages, tokens alive, importance, budget, origin.

    Example: vflowopt-search show runs/quickstart/strategy.json
    """
    strategy = Strategy.load(file)
    if as_json:
        print_json(described(strategy))
        return
    console = stdout()
    console.print(f"[bold]{strategy.name}[/bold]", soft_wrap=True)
    facts = [*_model(strategy), *_ranking(strategy), *_budget(strategy), *_origin(strategy)]
    console.print(table(("", ""), facts))
    console.print(table(("decoder layers", "keep ratio", "alive", "ranked by"), _stages(strategy)))


def described(strategy: Strategy) -> dict[str, Any]:
    """The file's content and what follows from it, where the model's depth is known."""
    from vflowopt_search.budget import alive_ratios, mean_retained

    derived: dict[str, Any] = {}
    if strategy.model is not None:
        depth = strategy.model.decoder_layers
        derived["alive_per_layer"] = alive_ratios(strategy.stages, depth)
        derived["mean_retained"] = mean_retained(strategy.stages, depth)
    return {"strategy": strategy.model_dump(mode="json"), "derived": derived}


def _model(strategy: Strategy) -> Facts:
    model = strategy.model
    if model is None:
        return [("model", "any")]
    shape = (
        f"{model.model_type}, {model.decoder_layers} decoder layers of width "
        f"{model.hidden_size}, {model.vision_layers} vision layers"
    )
    revision = f" at {model.revision}" if model.revision else ""
    return [("model", f"{model.name}{revision}: {shape}" if model.name else shape)]


def _ranking(strategy: Strategy) -> Facts:
    importance = strategy.importance
    parts = [importance.score]
    if importance.vision_layer is not None:
        parts.append(f"vision layer {importance.vision_layer}")
        parts.append(f"context threshold {importance.context_threshold:g}")
    if importance.entropy_weight:
        parts.append(f"entropy weight {importance.entropy_weight:g}")
    if importance.score == "random":
        parts.append(f"seed {importance.seed}")
    recycling = strategy.recycling
    return [
        ("importance", ", ".join(parts)),
        ("recycling", f"cells of {recycling.cell:g} tokens" if recycling else "none"),
        ("row separators", strategy.separators),
        ("positions", strategy.positions),
    ]


def _budget(strategy: Strategy) -> Facts:
    from vflowopt_search.budget import mean_retained

    facts = []
    if strategy.budget is not None:
        facts.append(("budget", f"{strategy.budget.mean_retained:.2%} of the visual tokens"))
    if strategy.model is not None:
        kept = mean_retained(strategy.stages, strategy.model.decoder_layers)
        facts.append(("mean retained", f"{kept:.2%} over all decoder layers"))
    return facts


def _origin(strategy: Strategy) -> Facts:
    origin = strategy.provenance
    if origin is None:
        return []
    facts = []
    if (measured := origin.objective) is not None and measured.divergence is not None:
        held_out = "" if measured.held_out is None else f", {measured.held_out:.5f} held out"
        facts.append(("measured", f"{measured.metric} {measured.divergence:.5f}{held_out}"))
    if (samples := origin.calibration) is not None:
        facts.append(("on", f"{samples.name}, {samples.samples} samples ({samples.sha256[:12]})"))
    if origin.study is not None:
        trial = "" if origin.trial is None else f", trial {origin.trial}"
        facts.append(("found by", f"study {origin.study}{trial}"))
    if origin.created is not None:
        facts.append(("created", origin.created))
    if origin.versions:
        facts.append(("versions", ", ".join(f"{k} {v}" for k, v in origin.versions.items())))
    return facts


def _stages(strategy: Strategy) -> list[tuple[str, str, str, str]]:
    """One row per run of layers with the same tokens alive."""
    first, alive, rows = strategy.stages[0].layer, 1.0, []
    if first > 0:
        rows.append((_layers(0, first), "-", f"{alive:.2%}", "-"))
    depth = strategy.model.decoder_layers if strategy.model else None
    ends = [*(stage.layer for stage in strategy.stages[1:]), depth]
    for stage, end in zip(strategy.stages, ends, strict=True):
        alive *= stage.keep_ratio
        score = stage.score or strategy.importance.score
        rows.append((_layers(stage.layer, end), f"{stage.keep_ratio:.4f}", f"{alive:.2%}", score))
    return rows


def _layers(first: int, end: int | None) -> str:
    if end is None:
        return f"{first} and later"
    return str(first) if end == first + 1 else f"{first} to {end - 1}"
