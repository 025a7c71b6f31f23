"""The trials of a search: in this process, or in several that share the study."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from vflowopt_search import run_folder
from vflowopt_search.cli.job import Job
from vflowopt_search.cli.preparation import Prepared
from vflowopt_search.cli.progress import Display

if TYPE_CHECKING:
    from vflowopt_search.calibration.samples import CalibrationSet
    from vflowopt_search.outcome import StudyOutcome, TrialReport
    from vflowopt_search.settings import StudySettings
    from vflowopt_search.workers import Workers

_MODULE = "vflowopt_search.cli.worker"
LOOK_SECONDS = 0.5
"""Between two looks at what the other workers do."""


def run_all(job: Job, prepared: Prepared, shown: Display) -> StudyOutcome:
    """Run the trials that are still to be run, by as many workers as the job wants.

    This process is one of them. What another one leaves when it dies is tried again by those
    that go on, and in the end by this process.

    Raises:
        VFlowOptError: this process cannot run them.
    """
    lacking = _lacking(job)
    if lacking > 0:
        shown.phase("trials", job.recipe.trials)
    workers = min(job.workers, lacking)
    if workers <= 1:
        return run_trials(job, prepared, shown)
    from vflowopt_search.outcome import outcome_of_study
    from vflowopt_search.workers import Workers, threads_each, with_threads

    threads, latest = threads_each(workers), Latest(shown)
    with with_threads(threads), Workers(_MODULE, _tasks(job, workers), threads) as others:
        outcome = run_trials(job, prepared, latest, others)
        interrupted = outcome.interrupted
        while others.running and not (outcome.finished or interrupted):
            try:
                _wait(outcome, job.recipe.trials, others, latest)
            except KeyboardInterrupt:
                interrupted = True
            else:
                outcome = run_trials(job, prepared, latest, others)
                interrupted = outcome.interrupted
    latest.catch_up(outcome, job.recipe.trials)
    return outcome_of_study(outcome.study, job.recipe.trials, interrupted=interrupted)


class Latest:
    """A display that also shows, when told to, what other workers did since it was last told."""

    def __init__(self, shown: Display) -> None:
        self._shown, self._done = shown, 0
        self.phase, self.step = shown.phase, shown.step

    def trial(self, report: TrialReport) -> None:
        """A trial ended."""
        self._done = report.done
        self._shown.trial(report)

    def catch_up(self, left: StudyOutcome, total: int) -> None:
        """Show the study as it is by now, if it has more trials than were shown."""
        from vflowopt_search.outcome import report_of
        from vflowopt_search.trials import counts

        ended = [trial for trial in left.study.get_trials(deepcopy=False) if counts(trial)]
        if len(ended) > self._done:
            last = max(ended, key=lambda trial: str(trial.datetime_complete))
            self.trial(report_of(left.study, last, total))


def run_trials(
    job: Job, prepared: Prepared, shown: Display, others: Workers | None = None
) -> StudyOutcome:
    """Run trials in this process until all have begun.

    Args:
        job: what was asked for.
        prepared: model and samples.
        shown: where progress goes.
        others: told of where one has ended.
    """
    from vflowopt_search.report.artifacts import BestPictures
    from vflowopt_search.storage import open_storage
    from vflowopt_search.study import run_study, study_context

    facts = prepared.objective.facts
    storage = open_storage(job.storage_or_journal)
    folder = job.output / run_folder.ARTIFACTS
    pictures = BestPictures(prepared.objective, storage, job.study_name, folder)

    def on_trial(report: TrialReport) -> None:
        shown.trial(report)
        pictures(report)
        if others is not None:
            _tell_of(others)

    return run_study(
        prepared.objective,
        prepared.space.bind(facts),
        _settings(job),
        storage=storage,
        context={
            **study_context(facts.identity, prepared.calibration, prepared.space),
            **prepared.objective.fingerprint,
        },
        on_trial=on_trial,
    )


def check_devices(job: Job) -> None:
    """Refuse, before any work, a device that is not there.

    Raises:
        ModelError: names it.
    """
    if job.devices:
        from vflowopt_search.adapters.loading import parse_device

        for device in job.devices:
            parse_device(device)


def check_resumable(job: Job, samples: CalibrationSet | None = None) -> None:
    """Refuse, before the model is loaded, a job that is not the one of the study in its storage.

    Args:
        job: what is asked for.
        samples: those that were chosen for it, once they are.

    Raises:
        StudyError: the study was made with other settings, or cannot be opened.
        SearchSpaceError: there is no such space.
    """
    from vflowopt_search.resuming import refuse_another
    from vflowopt_search.search_space import SearchSpace

    known = {
        "model": job.source.name,
        "metric": job.recipe.metric,
        "space_sha256": SearchSpace.load(job.recipe.space).sha256(),
    }
    refuse_another(job.storage_or_journal, _settings(job), known, samples)


def _settings(job: Job) -> StudySettings:
    from vflowopt_search.settings import StudySettings

    return StudySettings(
        job.study_name,
        job.recipe.retain,
        job.recipe.trials,
        job.recipe.seed,
        job.racing,
        job.sampler,
        job.trials_per_batch,
    )


def _tasks(job: Job, workers: int) -> dict[str, Job]:
    """What each worker but this process does, by its name."""
    devices = job.devices or _all_devices(job)
    tasks = {}
    for number in range(1, workers):
        device = devices[number % len(devices)]
        mine = replace(job, workers=1, source=replace(job.source, device=device))
        where = "" if device == "auto" else f" ({device})"
        tasks[f"worker {number + 1} of {workers}{where}"] = mine
    return tasks


def _all_devices(job: Job) -> list[str]:
    """The device that was asked for, or every GPU where none was."""
    import torch

    many = job.source.device == "auto" and torch.cuda.device_count() > 1
    return [f"cuda:{n}" for n in range(torch.cuda.device_count())] if many else [job.source.device]


def _wait(left: StudyOutcome, total: int, others: Workers, latest: Latest) -> None:
    """Show how the others go on, until one of them has died or no trial is left."""
    from vflowopt_search.trials import num_counted

    while not _tell_of(others) and others.running:
        latest.catch_up(left, total)
        if num_counted(left.study.get_trials(deepcopy=False)) >= total:
            return
        time.sleep(LOOK_SECONDS)


def _lacking(job: Job) -> int:
    """How many trials the study still lacks; all of them where there is no study yet."""
    from vflowopt_search.storage import open_storage
    from vflowopt_search.trials import num_counted_in

    storage = open_storage(job.storage_or_journal)
    return job.recipe.trials - num_counted_in(storage, job.study_name)


def _tell_of(others: Workers) -> bool:
    """Say which workers have died; whether any has."""
    sentences = others.ended()
    for sentence in sentences:
        typer.echo(f"note: {sentence}", err=True)
    return bool(sentences)
