"""What one run of `search` did, as one JSON file: printed with `--json`, kept with the results."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vflowopt_search import run_folder
from vflowopt_search.cli.comparison import COLUMNS, Comparison, Row, held_out_of
from vflowopt_search.cli.job import Job
from vflowopt_search.documents import replace_atomically
from vflowopt_search.errors import StudyError
from vflowopt_search.report.words import FOUND
from vflowopt_search.textbook import unbeaten
from vflowopt_search.whole_tokens import overshoot

if TYPE_CHECKING:
    from vflowopt_search.cli.preparation import Prepared
    from vflowopt_search.outcome import StudyOutcome
    from vflowopt_search.strategy import Strategy
    from vflowopt_search.trials import Outcome

FILE = run_folder.SUMMARY


@dataclass(frozen=True)
class Summary:
    """One run and all that its result depends on.

    Attributes:
        study: name of the study.
        finished: whether all trials that were asked for are done.
        interrupted: whether Ctrl-C ended the run.
        trials: number of trials by how they ended, `asked` and `done`; `asked`, as in the recipe,
            is never fewer than are done.
        best: trial, divergence and fingerprint of the best strategy, and its name in the textbook
            where no trial beat that; None when there is none.
        comparison: the found strategy beside baselines; null where it is still to be measured.
        wanted: columns that the comparison will have, and `overlays` where they will be recorded.
        complete: whether all trials are done and all of that is measured; the same command goes on
            with what is missing.
        context_sha256: fingerprint of what the study's results depend on, shortened.
        recipe: what was asked for.
        settings: how it was searched: sampler, racing, trials to a batch, workers.
        calibration: name, number and fingerprint of the samples, and the fewest and the most visual
            tokens of one.
        budget: a sentence where whole tokens cannot keep as few as were asked for; else empty.
        environment: device, precision and versions.
        seconds: wall time of all processes that had a part in the result, each as far as it
            has written this file; a rerun that finds everything done adds nothing.
        files: what was written, by what it is.
    """

    study: str
    finished: bool
    interrupted: bool
    trials: dict[str, int]
    best: dict[str, Any] | None
    comparison: tuple[Row, ...]
    wanted: tuple[str, ...]
    complete: bool
    context_sha256: str
    recipe: dict[str, Any]
    settings: dict[str, Any]
    calibration: dict[str, Any]
    budget: str
    environment: dict[str, Any]
    seconds: float
    files: dict[str, str]

    @classmethod
    def of(
        cls,
        job: Job,
        prepared: Prepared,
        outcome: StudyOutcome,
        comparison: Comparison,
        seconds: float,
    ) -> Summary:
        """Gather what a run did."""
        from vflowopt_search.outcome import context_sha256

        samples = prepared.calibration
        return cls(
            study=job.study_name,
            finished=outcome.finished,
            interrupted=outcome.interrupted,
            trials=_trials(job, outcome),
            best=_best(outcome),
            comparison=comparison.rows,
            wanted=comparison.wanted,
            complete=comparison.complete,
            context_sha256=context_sha256(outcome.study),
            recipe=job.recipe.model_dump(mode="json"),
            settings=_settings(job),
            calibration={
                "name": samples.name,
                "samples": len(samples),
                "skipped": samples.skipped,
                "note": samples.note,
                "halved": samples.halved,
                "sha256": samples.sha256,
                "visual_tokens": prepared.objective.visual_tokens,
            },
            budget=overshoot(job.recipe.retain, outcome.best, prepared.objective.visual_tokens),
            environment=_environment(prepared),
            seconds=round(seconds, 3),
            files=_files(job),
        )

    def to_json(self) -> str:
        """The file's text."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def write(self, folder: Path) -> None:
        """Write `summary.json`.

        Raises:
            StudyError: the folder cannot be written to.
        """
        try:
            replace_atomically(folder / FILE, self.to_json())
        except OSError as error:
            raise StudyError(
                f"{folder / FILE} cannot be written ({error.strerror}); make room or choose "
                f"another folder with --output"
            ) from error

    def sentence(self, asked: int) -> str:
        """How the run ended, for people; `asked` trials were typed this time."""
        counts = self.trials
        ended = ", ".join(f"{counts[how]} {how}" for how in _OUTCOMES if counts[how])
        best = "nothing found" if self.best is None else f"best {self.best['divergence']:.5f}"
        if self.best is not None and "held_out" in self.best:
            best += f", {self.best['held_out']:.5f} on {self.best['held_out_samples']} others"
        if asked < counts["done"]:
            total = f"{counts['done']} trials ({asked} asked for; {ended})"
        else:
            total = f"{counts['done']} of {asked} trials ({ended})"
        return f"{self.study}: {total}, {best}"

    def remarks(self) -> list[str]:
        """What to know of the best strategy, for people; mostly nothing."""
        textbook = "" if self.best is None else unbeaten(self.best.get("textbook"))
        return [remark for remark in (textbook, self.budget) if remark]


_OUTCOMES: tuple[Outcome, ...] = ("complete", "stopped", "failed")


def earlier_comparison(folder: Path, outcome: StudyOutcome) -> Comparison:
    """What an earlier run of this very study measured, perhaps not all of it.

    Where another strategy is the best now, its own row is left out. Nothing is complete before all
    trials are done.
    """
    stored = _earlier(folder, outcome)
    try:
        rows = tuple(Row(**row) for row in stored["comparison"])
        then = (stored["best"] or {}).get("strategy_sha256")
        # one that says neither was written once everything was measured
        wanted = tuple(stored.get("wanted", _filled(rows)))
        complete = bool(stored.get("complete", rows))
    except (KeyError, TypeError):  # absent, or not whole: measured again
        return Comparison()
    of_best = outcome.best is not None and then == _fingerprint(outcome.best)
    kept = rows if of_best else tuple(row for row in rows if row.name != FOUND)
    earlier = Comparison(kept, wanted)
    # not what it says alone: it was once said of a best without its held-out divergence
    return replace(earlier, complete=complete and of_best and outcome.finished and earlier.filled)


def earlier_seconds(folder: Path, outcome: StudyOutcome) -> tuple[float, bool]:
    """Wall time of the processes before, and whether they ran all trials that there are now."""
    from vflowopt_search.trials import num_counted

    stored = _earlier(folder, outcome)
    try:
        seconds, done = float(stored["seconds"]), stored["trials"]["done"]
    except (KeyError, TypeError, ValueError):
        return 0.0, False
    return seconds, done == num_counted(outcome.study.get_trials(deepcopy=False))


def _earlier(folder: Path, outcome: StudyOutcome) -> dict[str, Any]:
    """The summary that an earlier process left of this very study; empty without one."""
    from vflowopt_search.outcome import context_sha256

    try:
        stored = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(stored, dict):
        return {}
    own = stored.get("context_sha256") in (None, context_sha256(outcome.study))
    return stored if own else {}


def _filled(rows: Sequence[Row]) -> list[str]:
    """The columns that every row has."""
    filled = [c for c in COLUMNS if all(getattr(row, c) is not None for row in rows)]
    return [*filled, "overlays"]


def _fingerprint(strategy: Strategy) -> str:
    return hashlib.sha256(strategy.to_json().encode()).hexdigest()


def _best(outcome: StudyOutcome) -> dict[str, Any] | None:
    if outcome.best is None or outcome.best_trial is None:
        return None
    return {
        "trial": outcome.best_trial.number,
        **({} if outcome.textbook is None else {"textbook": outcome.textbook}),
        "divergence": outcome.divergence,
        **_held_out(outcome.best),
        "strategy_sha256": _fingerprint(outcome.best),
    }


def _held_out(best: Strategy) -> dict[str, Any]:
    """Divergence on samples that no trial saw, and how many; nothing where not measured."""
    calibration = None if best.provenance is None else best.provenance.calibration
    if (divergence := held_out_of(best)) is None:
        return {}
    count = None if calibration is None else calibration.held_out
    return {"held_out": divergence, "held_out_samples": count}


def _trials(job: Job, outcome: StudyOutcome) -> dict[str, int]:
    from vflowopt_search.trials import outcome_of

    ended = Counter(outcome_of(trial) for trial in outcome.study.get_trials(deepcopy=False))
    counts: dict[str, int] = {how: ended[how] for how in _OUTCOMES}
    return {"asked": job.recipe.trials, "done": sum(counts.values()), **counts}


def _settings(job: Job) -> dict[str, Any]:
    names = ("sampler", "racing", "trials_per_batch", "workers")
    return {name: getattr(job, name) for name in names}


def _environment(prepared: Prepared) -> dict[str, Any]:
    from vflowopt_search.outcome import versions

    model = prepared.loaded[0]
    dtype = str(model.dtype).removeprefix("torch.")
    return {"device": str(model.device), "dtype": dtype, "versions": versions()}


def _files(job: Job) -> dict[str, str]:
    """What is in the output folder, by what it is; the report is written last."""
    names = {
        "strategy": run_folder.STRATEGY,
        "trials": run_folder.TRIALS,
        "report": run_folder.REPORT,
        "study": run_folder.JOURNAL,
    }
    paths = {what: job.output / name for what, name in names.items()}
    written = {what: path for what, path in paths.items() if path.exists() or what == "report"}
    return {what: str(path) for what, path in written.items()}
