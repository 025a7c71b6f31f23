"""A run's folder as one value: the study and whatever was written beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna import Study

from vflowopt_search import run_folder
from vflowopt_search.errors import StudyError
from vflowopt_search.outcome import CONTEXT, best_strategy, context_sha256, strategy_of
from vflowopt_search.report.measured import UNPRUNED
from vflowopt_search.report.overlay_record import Overlays, fingerprint, load_overlays
from vflowopt_search.report.restored import study_from_table
from vflowopt_search.report.stored import database_of, only_study
from vflowopt_search.report.words import FOUND
from vflowopt_search.strategy import Strategy
from vflowopt_search.trials import best_full


@dataclass(frozen=True)
class Run:
    """What a search left in its folder; what it did not leave is None or empty.

    Attributes:
        study: the Optuna study.
        strategy: the one found; None before a trial was measured on all samples.
        baselines: divergence of baselines at the same retention ratio, by name.
        folder: where all this is; None of a study that is in no folder.
        summary: what `summary.json` says.
        command: what makes the run again.
        overlays: what the strategy keeps of some samples; their pictures are in the folder.
        evaluation: what `evaluation.json` says: accuracy on labelled data.
        benchmark: what `benchmark.json` says: time and memory.
        restored: whether the study comes from the table of its trials, which says less.
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
    restored: bool = False

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

    A folder that holds the table of the trials but not the study, as results are kept, gives a
    study made from the table. The study of a search that was given a database is read from there.

    Args:
        folder: the output folder of a search.
        storage: the database's URL, of a search that was given one; the one that the folder's
            command names by default.
        study: the study, where it is open already.

    Raises:
        StudyError: there is no study, or not exactly one, or a file is broken.
        StrategyError: the strategy file is broken.
    """
    folder = Path(folder)
    best, command = folder / run_folder.STRATEGY, folder / run_folder.COMMAND
    saved = Strategy.load(best) if best.is_file() else None
    url = storage or (database_of(folder) if study is None else None)
    restored = study is None and url is None and _is_result(folder)
    if restored:
        table, summary = folder / run_folder.TRIALS, _json(folder / run_folder.SUMMARY)
        study = study_from_table(table, summary, saved)
        strategy = saved or _best_in(study)
    else:
        study = study or only_study(folder, url)
        # of a study that is running, or was killed, the file comes later or is of an earlier best
        strategy = best_strategy(study) or saved
    summary, baselines = _compared(folder, None if restored else study)
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
        restored=restored,
    )


def _is_result(folder: Path) -> bool:
    """Whether a folder holds the table of a study's trials, and not the study."""
    return (folder / run_folder.TRIALS).is_file() and not (folder / run_folder.JOURNAL).is_file()


def _best_in(study: Study) -> Strategy | None:
    """What the best trial measured; where it comes from is not in a table."""
    best = best_full(study.get_trials(deepcopy=False))
    return None if best is None else strategy_of(best)


def _compared(folder: Path, study: Study | None) -> tuple[dict[str, Any], dict[str, float]]:
    """The summary and the baselines, unless they were measured for another study than this."""
    summary, baselines = _json(folder / run_folder.SUMMARY), _json(folder / run_folder.BASELINES)
    if study is not None:
        own = context_sha256(study)
        if summary.get("context_sha256", own) != own:
            return {}, {}
    if "comparison" in summary:
        rows = {row["name"]: row["divergence"] for row in summary["comparison"]}
        measured = {name: value for name, value in rows.items() if value is not None}
        plain = {name: value for name, value in measured.items() if name not in (FOUND, UNPRUNED)}
        baselines = {name: value for name, value in baselines.items() if name in measured} or plain
    return summary, baselines


def _overlays_of(strategy: Strategy | None, folder: Path) -> Overlays | None:
    """The recorded overlays, unless they are of a strategy that is the best no longer."""
    overlays = load_overlays(folder)
    if overlays is None or strategy is None:
        return None
    return overlays if overlays.strategy_sha256 == fingerprint(strategy) else None


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
