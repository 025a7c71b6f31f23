"""A study as numbers: typed records that figures draw, and a table of all trials."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import ceil, fsum, isclose, isfinite
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from optuna import Study
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial

from vflowopt_search import trials
from vflowopt_search.budget import alive_ratios
from vflowopt_search.documents import draft_of
from vflowopt_search.outcome import strategy_of
from vflowopt_search.report.caution import ROUNDING
from vflowopt_search.report.words import FOUND
from vflowopt_search.strategy import Strategy
from vflowopt_search.trials import Outcome, best_full, is_full, outcome_of, value_of

MIN_TRIALS_FOR_IMPORTANCE = 10
"""With fewer, which parameters mattered is a guess."""
BEST_SHARE_TRIALS = 5
"""How many trials at least are the good ones that importance explains (PED-ANOVA)."""
BEST_SHARE = 0.1
"""The share of the trials that they are in a longer study."""
SOUND_TRIALS_FOR_IMPORTANCE = round(BEST_SHARE_TRIALS / BEST_SHARE)
"""With fewer, the good ones are too few to be a tenth, and the order is rough."""


@dataclass(frozen=True)
class History:
    """Divergence of each measured trial, and the lowest so far of a fully measured one."""

    trial: list[int]
    value: list[float]
    best: list[float]
    outcome: list[Outcome]
    label: list[str]
    """Name of the textbook strategy; empty of others."""
    baselines: dict[str, float] = field(default_factory=dict)
    """Divergence of baselines at the same retention ratio."""


@dataclass(frozen=True)
class Staircase:
    """Share of visual tokens alive in each decoder layer, by strategy; the found comes first."""

    layer: list[int]
    alive: dict[str, list[float]]


@dataclass(frozen=True)
class SampleHeatmap:
    """Divergence of each sample under the best trials; the hardest samples come first."""

    trial: list[int]
    sample: list[int]
    value: list[list[float]]
    """One row per trial, best first."""


@dataclass(frozen=True)
class ParameterImportance:
    """How much each parameter decides whether a trial is among the best; sums to 1."""

    parameter: list[str]
    importance: list[float]
    trials: int = 0
    """How many were measured."""
    explained: int = 0
    """How many of them, those of lowest divergence, are compared with all."""

    @property
    def rough(self) -> bool:
        """Whether so few trials are compared that others could change the order."""
        return self.trials < SOUND_TRIALS_FOR_IMPORTANCE


@dataclass(frozen=True)
class Comparison:
    """Divergence of the strategy found and of baselines that keep as many tokens, lowest first."""

    name: list[str]
    divergence: list[float]

    @property
    def baselines(self) -> dict[str, float]:
        """All but the strategy found; the closest to the unpruned model comes first."""
        pairs = zip(self.name, self.divergence, strict=True)
        return {name: value for name, value in pairs if name != FOUND}


def history(study: Study, baselines: Mapping[str, float] | None = None) -> History:
    """All measured trials in their order."""
    rows, best = [], float("inf")
    for trial in measured_trials(study):
        best = min(best, value_of(trial)) if is_full(trial) else best
        if isfinite(best):
            rows.append((trial, best))
    return History(
        trial=[trial.number for trial, _ in rows],
        value=[value_of(trial) for trial, _ in rows],
        best=[best for _, best in rows],
        outcome=[outcome_of(trial) for trial, _ in rows],
        label=[trial.user_attrs.get(trials.TEXTBOOK, "") for trial, _ in rows],
        baselines=dict(sorted((baselines or {}).items())),
    )


def staircase(study: Study, baselines: Mapping[str, float] | None = None) -> Staircase:
    """Of the strategy found, of the textbook's, and of `baselines`, which drop all at layer 0."""
    best = best_full(study.get_trials(deepcopy=False))
    chosen = {} if best is None else {FOUND: best}
    textbook = {t.user_attrs[trials.TEXTBOOK]: t for t in _textbook(study, baselines or {})}
    strategies = {name: strategy_of(trial) for name, trial in {**chosen, **textbook}.items()}
    depth = max((_depth(strategy) for strategy in strategies.values()), default=0)
    alive = {name: alive_ratios(s.stages, depth) for name, s in strategies.items()}
    if baselines and FOUND in alive:
        # one line for all: they differ in which tokens they keep, not in how many
        alive[", ".join(sorted(baselines))] = [fsum(alive[FOUND]) / depth] * depth
    return Staircase(layer=list(range(depth)), alive=alive)


def sample_heatmap(study: Study, top: int = 20) -> SampleHeatmap:
    """Of the `top` best among fully measured trials."""
    # one that comes from a table of trials has no divergence of each sample
    known = [trial for trial in measured_trials(study) if is_full(trial) and trials.measured(trial)]
    full = sorted(known, key=lambda trial: (value_of(trial), trial.number))[:top]
    rows = [trials.measured(trial) for trial in full]
    columns = list(zip(*rows, strict=True))
    hardest = sorted(range(len(columns)), key=lambda sample: (-fsum(columns[sample]), sample))
    return SampleHeatmap(
        trial=[trial.number for trial in full],
        sample=hardest,
        value=[[row[sample] for sample in hardest] for row in rows],
    )


def parameter_importance(study: Study) -> ParameterImportance:
    """By PED-ANOVA; empty of a study too small to say."""
    num_trials = len(measured_trials(study))
    if num_trials < MIN_TRIALS_FOR_IMPORTANCE:
        return ParameterImportance([], [])
    share = max(BEST_SHARE, BEST_SHARE_TRIALS / num_trials)
    evaluator = PedAnovaImportanceEvaluator(target_quantile=share)
    with warnings.catch_warnings():
        # Optuna warns of parameters that few trials have; they come out as unimportant.
        warnings.simplefilter("ignore", UserWarning)
        shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    ranked = sorted(shares.items(), key=lambda item: (-item[1], item[0]))
    return ParameterImportance(
        [name for name, _ in ranked],
        [part for _, part in ranked],
        num_trials,
        ceil(share * num_trials),
    )


def comparison(study: Study, baselines: Mapping[str, float] | None = None) -> Comparison:
    """The one found, the textbook's measured on all samples, `baselines` (name to divergence).

    A textbook strategy that is one of the baselines under another name is there once.
    """
    best = best_full(study.get_trials(deepcopy=False))
    if best is None:
        return Comparison([], [])
    textbook = [t for t in _textbook(study, baselines or {}) if is_full(t)]
    rows = {t.user_attrs[trials.TEXTBOOK]: value_of(t) for t in textbook}
    rows.update(baselines or {})
    ranked = sorted({**rows, FOUND: value_of(best)}.items(), key=lambda row: (row[1], row[0]))
    return Comparison([name for name, _ in ranked], [value for _, value in ranked])


def others(study: Study, baselines: Mapping[str, float]) -> dict[str, float]:
    """Divergence of all baselines but the one that was found, if one was; the closest first."""
    found = best_full(study.get_trials(deepcopy=False))
    beside = comparison(study, baselines).baselines
    if found is None or trials.TEXTBOOK not in found.user_attrs:
        return beside
    itself = {name for name, value in baselines.items() if _is_baseline(found, [value])}
    itself |= {found.user_attrs[trials.TEXTBOOK]} - baselines.keys()
    return {name: value for name, value in beside.items() if name not in itself}


def trials_frame(study: Study) -> pd.DataFrame:
    """One row per trial that ended: how it ended, its parameters and its strategy."""
    frame = pd.DataFrame([_row(trial) for trial in trials.finished(study)])
    layers = [column for column in frame.columns if column == "slot" or column.endswith("_layer")]
    return frame.astype(dict.fromkeys(layers, "Int64"))  # whole numbers, also beside missing ones


def write_trials(study: Study, path: str | Path) -> None:
    """Write the table of all trials as Parquet, whole or not at all."""
    with draft_of(Path(path)) as draft:
        trials_frame(study).to_parquet(draft, index=False)


def measured_trials(study: Study) -> list[FrozenTrial]:
    """Trials of ours that ended with a finite divergence, of all samples or of some."""
    return [
        trial
        for trial in trials.finished(study)
        if trial.value is not None and isfinite(trial.value) and trials.STRATEGY in trial.user_attrs
    ]


def _textbook(study: Study, baselines: Mapping[str, float]) -> list[FrozenTrial]:
    """The measured trials of textbook strategies that are not one of the baselines."""
    named = [t for t in measured_trials(study) if trials.TEXTBOOK in t.user_attrs]
    return [trial for trial in named if not _is_baseline(trial, baselines.values())]


def _is_baseline(trial: FrozenTrial, divergences: Iterable[float]) -> bool:
    """Whether a trial measured a baseline: all dropped at layer 0, divergence equal to rounding."""
    if not is_full(trial) or [stage.layer for stage in strategy_of(trial).stages] != [0]:
        return False
    return any(isclose(value_of(trial), value, rel_tol=ROUNDING) for value in divergences)


def _depth(strategy: Strategy) -> int:
    return strategy.model.decoder_layers if strategy.model else strategy.stages[-1].layer + 1


def _row(trial: FrozenTrial) -> dict[str, Any]:
    attributes = trial.user_attrs
    row: dict[str, Any] = {
        "number": trial.number,
        "slot": attributes.get(trials.SLOT),
        "outcome": outcome_of(trial),
        "value": trial.value,
        "samples_seen": attributes.get(trials.SAMPLES_SEEN, 0),
        "seconds": attributes.get(trials.SECONDS),
        "textbook": attributes.get(trials.TEXTBOOK),
        "failure": attributes.get(trials.FAILURE),
        **{f"param_{name}": value for name, value in trial.params.items()},
    }
    if trials.STRATEGY in attributes:
        row |= _strategy_columns(strategy_of(trial))
        row["strategy"] = attributes[trials.STRATEGY]
    return row


def _strategy_columns(strategy: Strategy) -> dict[str, Any]:
    importance = strategy.importance
    columns: dict[str, Any] = {
        "score": importance.score,
        "vision_layer": importance.vision_layer,
        "context_threshold": importance.context_threshold,
        "entropy_weight": importance.entropy_weight,
        "recycling_cell": strategy.recycling.cell if strategy.recycling else None,
        "separators": strategy.separators,
        "positions": strategy.positions,
    }
    for number, stage in enumerate(strategy.stages, start=1):
        columns |= {f"stage{number}_layer": stage.layer, f"stage{number}_keep": stage.keep_ratio}
    return columns
