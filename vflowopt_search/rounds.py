"""Rounds of trials that are asked together, measured together and told in their order."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from types import TracebackType

from optuna import Study, Trial
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from vflowopt_search import trials
from vflowopt_search.errors import StudyError
from vflowopt_search.heartbeat import Heartbeat
from vflowopt_search.outcome import TrialReport, report_of
from vflowopt_search.race import OUT_OF_MEMORY, Race, Runner
from vflowopt_search.recovery import (
    close_needless,
    num_running_elsewhere,
    recover,
    recover_others,
    why_needless,
)

OnTrial = Callable[[TrialReport], None]
MAX_OUT_OF_MEMORY = 5
"""After so many trials in a row that did not fit in memory, none is expected to."""


@dataclass
class Rounds:
    """The trials that a study still lacks.

    A trial is drawn knowing the parameters, but not the values, of those before it in its round.
    An interrupted round goes on with the same parameters, so that the study is the same in the
    end.

    Args:
        study: where they are asked and told.
        storage: the study's.
        race: draws and measures them.
        total: trials that the study has in the end, over all runs and workers.
        on_trial: called after each trial that counts.

    Attributes:
        out_of_memory: how many of the last trials in a row did not fit in memory.
    """

    study: Study
    storage: BaseStorage
    race: Race
    total: int
    on_trial: OnTrial | None
    out_of_memory: int = field(default=0, init=False)

    def run(self) -> None:
        """Run rounds until all trials have begun.

        A round of which another process took a trial ends there, and the next one begins.

        Raises:
            StudyError: trial after trial does not fit in memory.
            KeyboardInterrupt: Ctrl-C was pressed; the round's trials are left running.
        """
        while (begun := self._num_begun()) < self.total:
            try:
                self._round(self.race.trials_per_batch - begun % self.race.trials_per_batch)
            except UpdateFinishedTrialError:
                # this process was suspended for so long that another took its trial for dead,
                # which tries it again; so are the others of this round
                recover(self.study, self.storage)

    def _round(self, size: int) -> None:
        recover_others(self.study, self.storage)
        runners: list[Runner] = []
        with Heartbeat(self.storage) as heartbeat:
            while len(runners) < size and self._num_begun() + len(runners) < self.total:
                trial = _ask(self.study)
                heartbeat.add(trial._trial_id)
                reason = why_needless(self.study, self.storage, trial, self.total)
                if reason:
                    close_needless(self.study, trial, reason)
                    break
                runners.append(self.race.enter(trial))
            for group in _groups(runners):
                with _Blame(self.study, group):
                    self.race.run(self.study, group)
                self._tell(group)
                self._refuse_if_nothing_fits(group)

    def _refuse_if_nothing_fits(self, group: Sequence[Runner]) -> None:
        for runner in group:
            fits = not isinstance(runner.failure, OUT_OF_MEMORY)
            self.out_of_memory = 0 if fits else self.out_of_memory + 1
        if self.out_of_memory >= MAX_OUT_OF_MEMORY:
            last = group[-1].failure
            raise StudyError(
                f"{self.out_of_memory} trials in a row did not fit in memory (the last: {last}); "
                f"free memory or change what is measured, then go on with the same command"
            ) from last

    def _num_begun(self) -> int:
        """Trials that count or are in the hands of other processes."""
        counted = trials.num_counted(self.study.get_trials(deepcopy=False))
        return counted + num_running_elsewhere(self.study, self.storage)

    def _tell(self, group: Sequence[Runner]) -> None:
        samples = range(self.race.objective.num_samples)
        *_, last = ordered = sorted(group, key=lambda runner: runner.slot)
        for runner in ordered:
            trial = runner.trial
            if runner.failure is not None:
                _fail(self.study, trial, runner.failure)
            else:
                trial.set_user_attr(trials.SECONDS, round(runner.seconds, 6))
                trial.set_user_attr(trials.PER_SAMPLE, [runner.seen.get(i) for i in samples])
                trial.set_user_attr(trials.SAMPLES_SEEN, len(runner.seen))
                self.study.tell(trial, runner.value)
            if self.on_trial is not None:
                told = self.study.get_trials(deepcopy=False)[trial.number]
                report = report_of(self.study, told, self.total, others_follow=runner is not last)
                self.on_trial(report)


def _ask(study: Study) -> Trial:
    with warnings.catch_warnings():
        # Optuna misses its own heartbeat here; ours is in its place.
        warnings.filterwarnings("ignore", "Heartbeat of storage", UserWarning)
        return study.ask()


def _groups(runners: Sequence[Runner]) -> Iterator[list[Runner]]:
    """What is measured together: those under which a process ended before, each by itself.

    So the one that ends processes is found, and takes nobody with it.
    """
    for runner in runners:
        if runner.suspect:
            yield [runner]
    together = [runner for runner in runners if not runner.suspect]
    if together:
        yield together


def _fail(study: Study, trial: Trial, error: Exception) -> None:
    trial.set_user_attr(trials.FAILURE, f"{type(error).__name__}: {error}"[:500])
    study.tell(trial, state=TrialState.FAIL)


class _Blame(AbstractContextManager[None]):
    """When an error ends a measurement, its trial fails; lets every error through.

    A trial that another process took meanwhile is left as it is.
    Where nobody knows which of several trials it was, each is tried again by itself.
    """

    def __init__(self, study: Study, group: Sequence[Runner]) -> None:
        self._study, self._group = study, group

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, UpdateFinishedTrialError):
            with suppress(UpdateFinishedTrialError):
                self._blame(error)

    def _blame(self, error: Exception) -> None:
        known = [runner for runner in self._group if runner.failure is error]
        blamed = self._group if len(self._group) == 1 else known
        for runner in blamed:
            _fail(self._study, runner.trial, error)
        for runner in () if blamed else self._group:
            deaths = runner.trial.user_attrs.get(trials.DEATHS, 0) + 1
            runner.trial.set_user_attr(trials.DEATHS, deaths)
            said = f"measured with others, {type(error).__name__}: {error}"[:500]
            runner.trial.set_user_attr(trials.ABANDONED, said)
