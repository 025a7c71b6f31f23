"""`show`: what a strategy file says, for people and for scripts."""

from __future__ import annotations

from typing import Any

from vflowopt_search.cli.console import print_json, stdout, table
from vflowopt_search.cli.options import Json, StrategyPath
from vflowopt_search.report.words import Facts, ranking, share, stages
from vflowopt_search.strategy import Strategy
from vflowopt_search.strategy_hub import find_strategy
from vflowopt_search.textbook import unbeaten


def show(
    file: StrategyPath,
    as_json: Json = False,
) -> None:
    """Print what a strategy file says: stages, tokens alive, importance, budget, origin.

    Example: vflowopt-search show runs/quickstart
    """
    strategy = find_strategy(file)
    if as_json:
        print_json(described(strategy))
        return
    console = stdout()
    console.print(f"[bold]{strategy.name}[/bold]", soft_wrap=True)
    facts = [*_model(strategy), *ranking(strategy), *_budget(strategy), *_origin(strategy)]
    console.print(table(("", ""), facts))
    console.print(table(("decoder layers", "keep ratio", "alive", "ranked by"), stages(strategy)))


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


def _budget(strategy: Strategy) -> Facts:
    """The retention ratio: what the file claims, and what its stages keep where that differs."""
    from vflowopt_search.budget import mean_retained

    claimed = None if strategy.budget is None else share(strategy.budget.mean_retained)
    model, kept = strategy.model, claimed
    if model is not None:
        kept = share(mean_retained(strategy.stages, model.decoder_layers))
    if kept is None:
        return []
    said = f"{claimed or kept} of the visual tokens"
    said += f" claimed, but {kept} by its stages" * (claimed not in (None, kept))
    return [("retention ratio", f"{said}, mean over the decoder layers")]


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
    if origin.textbook is not None:
        facts.append(("textbook", unbeaten(origin.textbook)))
    if origin.created is not None:
        facts.append(("created", origin.created))
    if origin.versions:
        facts.append(("versions", ", ".join(f"{k} {v}" for k, v in origin.versions.items())))
    return facts
