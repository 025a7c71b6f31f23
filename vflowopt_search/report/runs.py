"""A run's folder as one value: the study and whatever was written beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna import Study

from vflowopt_search import run_folder
from vflowopt_search.errors import StudyError
from vflowopt_search.outcome import CONTEXT, best_strategy, context_sha256
from vflowopt_search.report.overlay_record import Overlays, fingerprint, load_overlays
from vflowopt_search.storage import open_storage, read_journal
from vflowopt_search.strategy import Strategy


@dataclass(frozen=True)
class Run:
    """What a search left in its folder; what it did not leave is None or empty.

    Attributes:
        study: the Optuna study.
        strategy: the best strategy; None before a trial was measured on all samples.
        baselines: divergence of plain strategies at the same budget, by name.
        folder: where all this is; None of a study that is in no folder.
        summary: what `summary.json` says.
        command: what makes the run again.
        overlays: what the strategy keeps of some samples; their pictures are in the folder.
        evaluation: what `evaluation.json` says: accuracy on labelled data.
        benchmark: what `benchmark.json` says: time and memory.
    """

    study: Study
    strategy: Strategy | None = None
    baselines: Mapping[str, float] = field(default_factory=dict)
    folder: Path | None = None
    summary: Mapping[str, Any] = field(default_factory=dict)
    command: str | None = None
    overlays: Overlays | None = None
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    benchmark: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the study."""
        return self.study.study_name

    @property
    def context(self) -> Mapping[str, str]:
        """What the study's results depend on; see `study.study_context`."""
        context: dict[str, str] = self.study.user_attrs.get(CONTEXT, {})
        return context

    @property
    def retain(self) -> float | None:
        """Budget that was asked for: share of visual tokens alive, mean over decoder layers."""
        return float(self.context["retain"]) if "retain" in self.context else None


def load_run(folder: str | Path, *, storage: str | None = None, study: Study | None = None) -> Run:
    """All that is in a run's folder; changes nothing, so a running study may be looked at.

    Args:
        folder: the output folder of a search.
        storage: the database's URL, of a search that was given one.
        study: the study, where it is open already.

    Raises:
        StudyError: there is no study, or not exactly one, or a file is broken.
        StrategyError: the strategy file is broken.
    """
    folder = Path(folder)
    study = study or _only_study(folder, storage)
    best, command = folder / run_folder.STRATEGY, folder / run_folder.COMMAND
    # of a study that is running, or was killed, the file comes later or is of an earlier best
    strategy = best_strategy(study) or (Strategy.load(best) if best.is_file() else None)
    summary, baselines = _compared(folder, study)
    return Run(
        study=study,
        strategy=strategy,
        baselines=baselines,
        folder=folder,
        summary=summary,
        command=command.read_text("utf-8").strip() if command.is_file() else None,
        overlays=_overlays_of(strategy, folder / run_folder.OVERLAYS),
        evaluation=_json(folder / run_folder.EVALUATION),
        benchmark=_json(folder / run_folder.BENCHMARK),
    )


def _compared(folder: Path, study: Study) -> tuple[dict[str, Any], dict[str, float]]:
    """The summary and the baselines, unless they were measured for another study."""
    summary, baselines = _json(folder / run_folder.SUMMARY), _json(folder / run_folder.BASELINES)
    own = context_sha256(study)
    if summary.get("context_sha256", own) != own:
        return {}, {}
    if "comparison" in summary:
        rows = {row["name"]: row["divergence"] for row in summary["comparison"]}
        measured = {name for name, value in rows.items() if value is not None}
        baselines = {name: value for name, value in baselines.items() if name in measured}
    return summary, baselines


def _overlays_of(strategy: Strategy | None, folder: Path) -> Overlays | None:
    """The recorded overlays, unless they are of a strategy that is the best no longer."""
    overlays = load_overlays(folder)
    if overlays is None or strategy is None:
        return None
    return overlays if overlays.strategy_sha256 == fingerprint(strategy) else None


def _only_study(folder: Path, url: str | None) -> Study:
    """The study of a folder; in a database, the one that is called after the folder."""
    if url is not None:
        storage, name = open_storage(url), folder.resolve().name
        if name not in optuna.get_all_study_names(storage):
            raise StudyError(f"the database has no study {name!r}; give the folder of its search")
        return optuna.load_study(study_name=name, storage=storage)
    journal = folder / run_folder.JOURNAL
    if not journal.is_file():
        raise StudyError(
            f"{folder} has no {run_folder.JOURNAL}; give the output folder of a search"
        )
    storage = read_journal(journal)
    names = optuna.get_all_study_names(storage)
    if len(names) != 1:
        raise StudyError(
            f"{journal} holds {len(names)} studies but a run has one; give another folder"
        )
    return optuna.load_study(study_name=names[0], storage=storage)


def _json(path: Path) -> dict[str, Any]:
    """A file's mapping; an empty one without the file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise StudyError(
            f"{path} is not valid JSON ({error}); remove it, or write it again"
        ) from error
    if not isinstance(content, dict):
        raise StudyError(f"{path} holds no mapping; remove it, or write it again")
    return content
