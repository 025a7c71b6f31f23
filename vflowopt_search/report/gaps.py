"""What a report cannot show of a run: why, and which command adds it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from vflowopt_search import run_folder
from vflowopt_search.report.facts import missing, results
from vflowopt_search.report.overlay_record import FILE as RECORD
from vflowopt_search.report.runs import Run
from vflowopt_search.report.stored import STORAGE
from vflowopt_search.report.words import FOUND
from vflowopt_search.trials import best_full, num_counted

TESTBED = "testbed"
"""The shipped model and its data, which commands know by themselves."""
_DATA_OPTIONS = ("--calibration", "--split", "--columns", "--prompt")
_RECIPE_OPTIONS = ("calibration", "samples", "space", "retain", "trials", "seed", "metric")
NO_HELD_OUT = "--no-held-out"
SAMPLES, OVERLAYS, END = "divergence of each sample", "overlays", "end of the search"
"""What some gaps are called, which stand in place of a figure too."""


@dataclass(frozen=True)
class Gap:
    """Something that is not in a report.

    Attributes:
        what: its name.
        why: a sentence.
        command: what adds it; empty where nothing does.
    """

    what: str
    why: str
    command: str = ""


def gaps(run: Run) -> dict[str, Gap]:
    """All that is missing, by what it is."""
    return {gap.what: gap for gap in _all(run)}


def search_command(run: Run) -> str:
    """The command that makes a run, as it was kept or as its recipe tells; empty of neither."""
    recipe = run.summary.get("recipe")
    if run.command or not recipe:
        return run.command or ""
    words = ["vflowopt-search", "search", str(recipe["model"])]
    for name in _RECIPE_OPTIONS:
        words += [f"--{name}", str(recipe[name])] if name in recipe else []
    return shlex.join(words)


def _all(run: Run) -> Iterator[Gap]:
    everything = run.study.get_trials(deepcopy=False)
    if best_full(everything) is None:
        done = num_counted(everything)
        why = f"No trial has been measured on all samples yet; {done} have ended."
        yield Gap("strategy", why, search_command(run))
        return
    if run.folder is None:
        return
    if run.restored:
        yield _per_sample(run)
    ended = (run.restored or bool(run.summary)) and not missing(run)
    if ended:
        yield from _held_out(run)
    else:
        yield _end(run)
    if (run.folder / run_folder.STRATEGY).is_file():
        if ended or "accuracy" not in run.summary.get("wanted", ()):
            yield from _accuracy(run)
        yield from _speed(run)
    if run.overlays is None and ended:
        yield Gap(OVERLAYS, _why_no_overlays(run), _report_command(run))


def _per_sample(run: Run) -> Gap:
    why = (
        f"The folder holds a result and not the study ({run_folder.JOURNAL}): "
        f"{run_folder.TRIALS} has the mean of each trial, not the divergence of each sample. "
        "The same search makes the study again:"
    )
    return Gap(SAMPLES, why, search_command(run))


def _end(run: Run) -> Gap:
    done = num_counted(run.study.get_trials(deepcopy=False))
    left = "; ".join(missing(run))
    if run.restored:
        why = (
            f"The search was interrupted after {done} trials, or its result kept, before it had "
            f"measured {left}. The same search makes the study again, and measures it:"
        )
        return Gap(END, why, search_command(run))
    why = (
        f"The search runs, or was interrupted after {done} trials, before it had measured {left}. "
        "The same command resumes it:"
        if left
        else f"The search runs, or was interrupted after {done} trials. At its end it measures "
        "the baselines and the held-out samples and records overlays. The same command resumes it:"
    )
    return Gap(END, why, search_command(run))


def _held_out(run: Run) -> Iterator[Gap]:
    found = next(row for row in results(run) if row.name == FOUND)
    if found.held_out is not None:
        return
    command = shlex.split(search_command(run))
    told = NO_HELD_OUT in command
    why = (
        f"The search was told {NO_HELD_OUT}. Without it, the same command measures them now:"
        if told
        else "The strategy found was not measured on held-out samples, perhaps because the data "
        "had no others. The same search measures them where there are some:"
    )
    yield Gap("held-out samples", why, shlex.join(w for w in command if w != NO_HELD_OUT))


def _accuracy(run: Run) -> Iterator[Gap]:
    if any(row.name == FOUND and row.accuracy is not None for row in results(run)):
        return
    why = (
        f"{run_folder.EVALUATION} is of another strategy than the one found now. Evaluate again:"
        if run.evaluation
        else "The accuracy with the strategy found was not measured. This measures it:"
    )
    words = ["vflowopt-search", "evaluate", str(run.folder), "baseline:random", "baseline:uniform"]
    if (model := _model(run)) != TESTBED:
        words += ["--model", model, "--data", "DATA"]
    yield Gap("accuracy", why, shlex.join(words))


def _speed(run: Run) -> Iterator[Gap]:
    if any(row.name == FOUND and row.speedup is not None for row in results(run)):
        return
    why = (
        f"{run_folder.BENCHMARK} is of another strategy than the one found now. Measure again:"
        if run.benchmark
        else "The time to first token and the KV cache were not measured. This measures them:"
    )
    words = ["vflowopt-search", "bench", str(run.folder)]
    words += [] if _named(run) else ["--model", _model(run)]
    yield Gap("speed-up and KV cache", why, shlex.join(words))


def _why_no_overlays(run: Run) -> str:
    assert run.folder is not None  # asked of runs with a folder only
    overlays = run.folder / run_folder.OVERLAYS
    if (overlays / RECORD).is_file():
        return "Those in the folder are of another strategy than the one found now. Record again:"
    if overlays.is_dir():
        return (
            f"The folder has {run_folder.OVERLAYS}/ but not its record ({RECORD}), without which "
            "the pictures cannot be shown. Record again:"
        )
    return "None were recorded of the strategy found. This records them:"


def _report_command(run: Run) -> str:
    words = ["vflowopt-search", "report", str(run.folder), "--model", _model(run)]
    given = shlex.split(search_command(run))
    pairs = dict(pairwise(given))
    data = {option: pairs[option] for option in _DATA_OPTIONS if option in pairs}
    for option, value in (data or {"--calibration": "DATA"}).items():
        words += [option, value]
    if STORAGE in pairs:
        words += [STORAGE, pairs[STORAGE]]
    return shlex.join(words)


def _model(run: Run) -> str:
    return run.context.get("model") or _named(run) or "MODEL"


def _named(run: Run) -> str | None:
    """The model that the strategy names."""
    identity = run.strategy.model if run.strategy else None
    return identity.name if identity else None
