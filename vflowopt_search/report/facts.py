"""What a run found, in the words and numbers of the report's first page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from optuna.trial import FrozenTrial

from vflowopt_search import trials
from vflowopt_search.budget import mean_retained
from vflowopt_search.outcome import VERSIONS
from vflowopt_search.report import frames
from vflowopt_search.report.measured import UNPRUNED, Measured, accuracy_of, speed_of
from vflowopt_search.report.runs import Run
from vflowopt_search.report.words import FOUND, METRICS, share
from vflowopt_search.strategy import Objective, Strategy
from vflowopt_search.trials import best_full, outcome_of, value_of

SAME_BUDGET = 0.01
"""Shares of visual tokens that differ by more are not one budget; whole tokens differ less."""

OWN_QUESTIONS = "held-out questions of the search, exact_match"
"""What the accuracies at the end of a search are of."""
RESULTS = {
    "divergence": "divergence",
    "held_out": "divergence on held-out samples",
    "accuracy": "accuracy",
}
"""Columns that the end of a search fills, in words."""


@dataclass(frozen=True)
class Result:
    """One strategy beside the others at one retention ratio; None where nothing was measured.

    Attributes:
        name: of the strategy; `found` is what the search found, `unpruned` the unpruned model.
        retained: share of the visual tokens alive, mean over the decoder layers.
        divergence: mean over the samples that the search looked at.
        held_out: mean over samples that it did not see.
        accuracy: share of right answers.
        accuracy_kept: the same relative to the unpruned model's.
        accuracy_range: ends of the 95 % interval of `accuracy_kept`.
        scored: which answers the accuracies are of, and how they were scored.
        speedup: time to first token of the unpruned model over that of the pruned one.
        kv_bytes: of the KV cache after the prefill.
        conditions: under which these two were measured.
    """

    name: str
    retained: float | None = None
    divergence: float | None = None
    held_out: float | None = None
    accuracy: float | None = None
    accuracy_kept: float | None = None
    accuracy_range: tuple[float, float] | None = None
    scored: str | None = None
    speedup: float | None = None
    kv_bytes: float | None = None
    conditions: str | None = None


def results(run: Run) -> list[Result]:
    """The unpruned model where it was measured, the found strategy, then baselines, closest first.

    Baselines are also the textbook strategies among the trials, measured on all samples.
    """
    best = best_full(run.study.get_trials(deepcopy=False))
    rows: dict[str, dict[str, Any]] = {}
    if best is not None:
        held_out = objective.held_out if (objective := _objective(run.strategy)) else None
        rows[FOUND] = {"divergence": value_of(best), "held_out": held_out, "retained": run.retain}
    beside = frames.comparison(run.study, run.baselines)
    for name, value in {**run.baselines, **beside.baselines}.items():
        rows[name] = {"divergence": value, "retained": run.retain}
    for name, values in _compared(run.summary, best).items():
        rows[name] = values | rows.get(name, {})
    accuracies = accuracy_of(run.evaluation)
    if any(_is_found(run, name) and _belongs(run, name, one) for name, one in accuracies.items()):
        # other questions than the search's own, and a column is of one set of samples
        rows = {name: _without_accuracy(row) for name, row in rows.items()}
    for measured in (accuracies, speed_of(run.benchmark)):
        for name, found in measured.items():
            if _belongs(run, name, found, known=name in rows):
                row = rows.setdefault(FOUND if _is_found(run, name) else name, {})
                row.update(found.values)
                row.setdefault("retained", found.retained)
    if UNPRUNED in rows:  # the same everywhere, also where it was not among what was compared
        nothing = 0.0 if any(row.get("held_out") is not None for row in rows.values()) else None
        rows[UNPRUNED].update(divergence=0.0, held_out=nothing)
    found_rows = [Result(name, **row) for name, row in rows.items()]
    return sorted(found_rows, key=_place)


def _without_accuracy(row: Mapping[str, Any]) -> dict[str, Any]:
    dropped = ("accuracy", "accuracy_kept", "accuracy_range", "scored")
    return {key: value for key, value in row.items() if key not in dropped}


def _place(row: Result) -> tuple[int, float]:
    first = {UNPRUNED: 0, FOUND: 1}.get(row.name, 2)
    return first, inf if row.divergence is None else row.divergence


def facts(run: Run) -> dict[str, str]:
    """What the run was about and how it went, by what it is."""
    context, strategy = run.context, run.strategy
    found = {
        "model": context.get("model") or _model_name(strategy),
        "calibration": _calibration(run),
        "divergence": METRICS.get(context.get("metric", ""), context.get("metric", "")),
        **_retention(run),
        "found": _best(run),
        "trials": _trials(run),
        "sample evaluations": _evaluations(run),
        "run": _environment(run),
        "versions": ", ".join(
            f"{k} {v}" for k, v in run.study.user_attrs.get(VERSIONS, {}).items()
        ),
    }
    return {name: value for name, value in found.items() if value}


def textbook_of(run: Run) -> str | None:
    """Name of the textbook strategy that no trial beat (see `trials.unbeaten_textbook`)."""
    return trials.unbeaten_textbook(run.study.get_trials(deepcopy=False))


def missing(run: Run) -> list[str]:
    """What the search that was asked for will have measured at its end, and has not yet.

    A search that is killed after its trials leaves this; the same command measures it.
    """
    by_itself = replace(run, evaluation={})  # `evaluate` measures no part of a search
    wanted, rows = run.summary.get("wanted", ()), {row.name: row for row in results(by_itself)}
    compared = {FOUND, *(row["name"] for row in run.summary.get("comparison", ()))}
    if FOUND not in rows:
        return []
    said = []
    for column, words in RESULTS.items():
        names = [name for name in rows if name in compared and getattr(rows[name], column) is None]
        if column in wanted and names:
            everything = len(names) == len(compared)
            said.append(words if everything else f"{words} of {' and '.join(names)}")
    # of a whole search they were taken away later, or are of an earlier best
    due = "overlays" in wanted and not run.summary.get("complete")
    return said + ["overlays"] * (due and run.overlays is None)


def _is_found(run: Run, name: str) -> bool:
    """Whether other commands mean the found strategy: they know it by the name in its file."""
    return run.strategy is not None and name == run.strategy.name


def _belongs(run: Run, name: str, measured: Measured, *, known: bool = True) -> bool:
    """Whether a measurement is of the row that has its name.

    More trials find another best under the same name, and a baseline has the same name at every
    retention ratio.
    """
    if run.strategy is not None and _is_found(run, name):
        return measured.strategy_sha256 in (None, run.strategy.content_sha256())
    if name == UNPRUNED or not known or run.retain is None or measured.retained is None:
        return True
    return abs(measured.retained - run.retain) <= SAME_BUDGET


def _objective(strategy: Strategy | None) -> Objective | None:
    return strategy.provenance.objective if strategy and strategy.provenance else None


def _compared(summary: Mapping[str, Any], best: FrozenTrial | None) -> dict[str, dict[str, Any]]:
    """The comparison in `summary.json` by strategy; of the found one, if it still is the best."""
    fields = ("retained", "divergence", "held_out", "accuracy", "accuracy_kept")
    rows = {
        str(row["name"]): {field: row.get(field) for field in fields}
        | {"scored": None if row.get("accuracy") is None else OWN_QUESTIONS}
        for row in summary.get("comparison", ())
    }
    then = (summary.get("best") or {}).get("trial")
    if best is None or then != best.number:
        rows.pop(FOUND, None)
    return rows


def _model_name(strategy: Strategy | None) -> str:
    return (
        str(strategy.model.name or strategy.model.model_type) if strategy and strategy.model else ""
    )


def _calibration(run: Run) -> str:
    context = run.context
    if "calibration" not in context:
        return ""
    origin = run.strategy.provenance if run.strategy else None
    held = origin.calibration.held_out if origin and origin.calibration else None
    held_out = f" and {held} held-out samples" if held else ""
    fingerprint = context.get("calibration_sha256", "")[:12]
    samples = context.get("samples", "?")
    return f"{context['calibration']}: {samples} samples{held_out} (fingerprint {fingerprint})"


def _retention(run: Run) -> dict[str, str]:
    """The retention ratio three times: as asked for, of the strategy, and as it was measured."""
    if run.retain is None:
        return {}
    target = f"{share(run.retain)} of the visual tokens, mean over the decoder layers"
    said, strategy = {"target retention ratio": target}, run.strategy
    if strategy is not None and strategy.model is not None:
        reached = share(mean_retained(strategy.stages, strategy.model.decoder_layers))
        said["retention ratio of the strategy"] = f"{reached}, computed from its keep ratios"
    if run.overlays is not None and run.overlays.samples:
        counted = [sample.mean_retained for sample in run.overlays.samples]
        span = " to ".join(dict.fromkeys(map(share, (min(counted), max(counted)))))
        said["measured retention ratio"] = f"{span} in whole tokens on {len(counted)} samples"
    return said


def _best(run: Run) -> str:
    best = best_full(run.study.get_trials(deepcopy=False))
    if best is None:
        return "none yet"
    said = f"divergence {value_of(best):.4g} in trial {best.number}"
    if (name := textbook_of(run)) is not None:
        said += f", the textbook strategy `{name}`"
    objective = _objective(run.strategy)
    if objective is not None and objective.held_out is not None:
        said += f"; {objective.held_out:.4g} on held-out samples"
    return said


def _trials(run: Run) -> str:
    ended = trials.finished(run.study)
    outcomes = [outcome_of(trial) for trial in run.study.get_trials(deepcopy=False)]
    asked = run.summary.get("trials", {}).get("asked")
    done = trials.num_counted(ended)
    of = f" of {asked}" if asked and asked >= done else ""
    parts = [f"{done}{of} done"]
    for outcome, words in (
        ("complete", "measured on every sample"),
        ("stopped", "stopped early"),
        ("failed", "failed"),
        ("running", "running"),
    ):
        if count := outcomes.count(outcome):  # type: ignore[arg-type]
            parts.append(f"{count} {words}")
    return ", ".join(parts)


def _evaluations(run: Run) -> str:
    ended = trials.finished(run.study)
    done = sum(trial.user_attrs.get(trials.SAMPLES_SEEN, 0) for trial in ended)
    whole = int(run.context.get("samples", 0)) * sum(
        outcome_of(trial) in ("complete", "stopped") for trial in ended
    )
    saved = f"; racing saved {1 - done / whole:.0%}" if 0 < done < whole else ""
    return f"{done:,}{saved}" if done else ""


def _environment(run: Run) -> str:
    environment, context = run.summary.get("environment", {}), run.context
    parts = [f"seed {context['seed']}"] if "seed" in context else []
    parts += [f"{context['sampler']} sampler"] if "sampler" in context else []
    parts += [f"{environment['device']}, {environment['dtype']}"] if environment else []
    return ", ".join(parts)
