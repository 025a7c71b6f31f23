"""What `search` leaves to be looked at: overlays, artifacts for the dashboard, the report."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vflowopt_search import run_folder
from vflowopt_search.cli import comparison
from vflowopt_search.cli.command_line import command_of
from vflowopt_search.cli.comparison import Row
from vflowopt_search.cli.job import Job
from vflowopt_search.documents import replace_atomically
from vflowopt_search.errors import StudyError

if TYPE_CHECKING:
    from optuna import Study

    from vflowopt_search.calibration.samples import CalibrationSet
    from vflowopt_search.cli.progress import Display
    from vflowopt_search.objective import Objective
    from vflowopt_search.outcome import StudyOutcome
    from vflowopt_search.strategy import Strategy


def write_command(job: Job) -> None:
    """Write the command that makes the run again.

    Raises:
        StudyError: the file cannot be written.
    """
    with written(job.output / run_folder.COMMAND) as path:
        replace_atomically(path, command_of(job) + "\n")


def write_seen_images(job: Job, seen: CalibrationSet) -> None:
    """Write which images the search saw, for an evaluation on some of them to say so.

    Raises:
        StudyError: the file cannot be written.
    """
    from vflowopt_search.calibration.seen_images import SeenImages

    with written(job.output / run_folder.SEEN_IMAGES) as path:
        SeenImages.of(seen).save(path)


def write_baselines(job: Job, rows: Sequence[Row]) -> None:
    """Write the divergence of the baselines, where they were measured.

    Raises:
        StudyError: the file cannot be written.
    """
    plain = comparison.baselines(rows)
    if plain:
        with written(job.output / run_folder.BASELINES) as path:
            replace_atomically(path, json.dumps(plain, indent=2) + "\n")


def write_overlays(
    folder: Path, objective: Objective, study: Study, strategy: Strategy, shown: Display
) -> None:
    """Record what the best strategy keeps of some samples, unless that is recorded already.

    Raises:
        StudyError: the folder cannot be written.
    """
    from vflowopt_search import trials
    from vflowopt_search.report.frames import sample_heatmap
    from vflowopt_search.report.overlay_record import fingerprint, load_overlays, save_overlays
    from vflowopt_search.report.overlay_recording import record_overlays

    known = load_overlays(folder / run_folder.OVERLAYS)
    best = trials.best_full(study.get_trials(deepcopy=False))
    if best is None or (known and known.strategy_sha256 == fingerprint(strategy)):
        return
    shown.phase("recording overlays")
    overlays, pictures = record_overlays(
        objective,
        strategy,
        # a table of trials has no divergences of samples
        trials.measured(best) or objective.measure(strategy, range(objective.num_samples)),
        hardest=sample_heatmap(study).sample,
        on_step=shown.step,
    )
    with written(folder / run_folder.OVERLAYS) as path:
        save_overlays(overlays, pictures, path)


def write_page(job: Job, outcome: StudyOutcome) -> None:
    """Write the report of a run from its folder.

    Raises:
        StudyError: a file cannot be read or written.
    """
    from vflowopt_search.report.page import write_report
    from vflowopt_search.report.runs import load_run

    run = load_run(job.output, study=outcome.study)
    with written(job.output / run_folder.REPORT) as path:
        write_report(run, path)


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """Says what to do when the disk is full or the folder is not ours."""
    try:
        yield path
    except OSError as error:
        raise StudyError(
            f"{path} cannot be written ({error.strerror}); make room, or choose another folder "
            f"with --output"
        ) from error
