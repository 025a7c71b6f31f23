"""The end of `search`: the best beside baselines; what is measured is on disk at once.

Divergences and answers are kept batch by batch, in the ledgers of the folder; the summary and the
baselines are written again after each strategy. So a run that is killed here has lost nothing: the
same command measures the rest, and a report shows what there is.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from vflowopt_search import run_folder
from vflowopt_search.cli import comparison
from vflowopt_search.cli.comparison import Columns, Comparison
from vflowopt_search.cli.held_out import HeldOut
from vflowopt_search.cli.job import Job
from vflowopt_search.cli.pictures import write_baselines, write_overlays, written
from vflowopt_search.cli.preparation import Prepared, held_out_questions
from vflowopt_search.cli.progress import Display
from vflowopt_search.cli.summary import Summary, earlier_comparison, earlier_seconds
from vflowopt_search.errors import StudyError
from vflowopt_search.model_source import SHIPPED
from vflowopt_search.report.words import FOUND

if TYPE_CHECKING:
    from vflowopt_search.outcome import StudyOutcome
    from vflowopt_search.strategy import Strategy


@dataclass
class Closing:
    """What is measured once the trials are done.

    Args:
        job: what was asked for.
        prepared: model and search half.
        outcome: what the study left; in the end with the held-out divergence of its best.
        held_out: the other half.
        shown: where progress goes.
        begun: when the run began, by the monotonic clock.

    Attributes:
        comparison: what is measured so far.
    """

    job: Job
    prepared: Prepared
    outcome: StudyOutcome
    held_out: HeldOut
    shown: Display
    begun: float
    comparison: Comparison = field(init=False)
    _spent: float = field(init=False)
    _ran_all: bool = field(init=False)

    def __post_init__(self) -> None:
        self.comparison = earlier_comparison(self.job.output, self.outcome)
        self._spent, self._ran_all = earlier_seconds(self.job.output, self.outcome)
        self._ran_all &= self.comparison.complete
        if not self.comparison.complete and self.outcome.best is not None:
            self._take(Columns.of(self.comparison.rows))

    def finish(self) -> None:
        """Measure what is missing; Ctrl-C ends that, and `outcome` then says so.

        The last `write` is left to the caller.

        Raises:
            VFlowOptError: something cannot be measured or written.
        """
        try:
            self._finish()
        except KeyboardInterrupt:
            from vflowopt_search.outcome import outcome_of_study

            study, trials = self.outcome.study, self.job.recipe.trials
            self.outcome = outcome_of_study(study, trials, interrupted=True)
            export(self.job, self.outcome)
            if not self.comparison.complete:
                self._take(Columns.of(self.comparison.rows))

    def summary(self) -> Summary:
        """What the run did so far."""
        now = 0.0 if self._ran_all else time.monotonic() - self.begun
        seconds = self._spent + now
        return Summary.of(self.job, self.prepared, self.outcome, self.comparison, seconds)

    def write(self) -> None:
        """Write the summary, and the baselines by themselves.

        Raises:
            StudyError: a file cannot be written.
        """
        write_baselines(self.job, self.comparison.rows)
        self.summary().write(self.job.output)

    @property
    def wanted(self) -> tuple[str, ...]:
        """Columns of the whole comparison, and the overlays."""
        held_out = ("held_out",) * self.held_out.expected
        return ("divergence", *held_out, *("accuracy",) * self._asks, "overlays")

    def _finish(self) -> None:
        earlier, before = self.comparison, self._best()
        if not earlier.has(self.wanted):
            columns = Columns.of(earlier.rows)
            self._fill(columns)  # what is to come is said first
            self.outcome = self.held_out.rescored(self.outcome)
            export(self.job, self.outcome)
            if comparison.held_out_of(before) not in (None, comparison.held_out_of(self._best())):
                columns.held_out.clear()  # of other samples
            if self._best() == before and earlier.has(self.wanted):
                self.comparison = earlier
            else:
                self._measure(columns)
        best, study = self._best(), self.outcome.study
        write_overlays(self.job.output, self.prepared.objective, study, best, self.shown)
        # where another worker holds the last trials, another strategy may be the best in the end
        complete = self.outcome.finished and self.comparison.filled
        self.comparison = replace(self.comparison, complete=complete)

    def _measure(self, columns: Columns) -> None:
        """Each column in turn, written whenever it has a value more."""
        self._fill(columns)
        self.shown.phase("comparing at the same budget")
        kept = self.prepared.kept(self.held_out.ledger)
        for name, mean in comparison.mean_divergences(kept, self._plain, self.shown.step):
            columns.divergence[name] = mean
            self._fill(columns)
        if self.held_out.objective is not None:
            self.shown.phase("comparing on held-out samples")
            others = self.held_out.objective
            for name, mean in comparison.mean_divergences(others, self._plain, self.shown.step):
                columns.held_out[name] = mean
                self._fill(columns)
        if self._asks:
            self._ask(columns)

    def _ask(self, columns: Columns) -> None:
        """Accuracy of all strategies, which answer batch by batch in turn."""
        from vflowopt_search.evaluate.ledger import Ledger

        self.shown.phase("answering held-out questions")
        answers = Ledger(self.job.output / run_folder.ANSWERS)
        everyone = {FOUND: self._best(), **self._plain}
        loaded, questions = self.prepared.loaded, held_out_questions()
        found = comparison.accuracies(loaded, questions, everyone, answers, self.shown.step)
        columns.accuracy.update(found)
        self._fill(columns)

    def _fill(self, columns: Columns) -> None:
        """Take what is measured so far as the comparison, and write it."""
        self._take(columns)
        self.write()

    def _take(self, columns: Columns) -> None:
        columns.divergence[FOUND] = self.outcome.divergence or 0.0
        if (held_out := comparison.held_out_of(self._best())) is not None:
            columns.held_out[FOUND] = held_out
        rows = columns.rows(self.job.recipe.retain, [FOUND, *self._plain])
        self.comparison = Comparison(rows, self.wanted)

    @cached_property
    def _plain(self) -> dict[str, Strategy]:
        from vflowopt_search.baselines import baseline_strategies

        return baseline_strategies(self.prepared.objective.facts, self.job.recipe.retain)

    @property
    def _asks(self) -> bool:
        """Whether the shipped questions are about what was searched."""
        job = self.job
        shipped = job.source.checkpoint == job.recipe.calibration == SHIPPED
        return job.accuracy and shipped and not job.source.random_init

    def _best(self) -> Strategy:
        if self.outcome.best is not None:
            return self.outcome.best
        from vflowopt_search import trials

        study = self.outcome.study
        reasons = [trial.user_attrs.get(trials.FAILURE) for trial in study.get_trials()]
        last = next((reason for reason in reversed(reasons) if reason), "no reason was stored")
        raise StudyError(
            f"none of the {len(reasons)} trials of study {study.study_name!r} was measured "
            f"on every sample (last failure: {last}); search again into another output folder"
        )


def export(job: Job, outcome: StudyOutcome) -> None:
    """Write what the study found so far: the best strategy and all trials.

    Raises:
        VFlowOptError: a file cannot be written.
    """
    from vflowopt_search.report.frames import write_trials

    if outcome.best is not None:
        outcome.best.save(job.output / run_folder.STRATEGY)
    with written(job.output / run_folder.TRIALS) as path:
        write_trials(outcome.study, path)
