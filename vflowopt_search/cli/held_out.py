"""The held-out half of `search`: samples that no trial sees, for the best and the plain ones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

from vflowopt_search.cli.preparation import held_out_half, objective_on

if TYPE_CHECKING:
    from vflowopt_search.calibration.samples import CalibrationSet
    from vflowopt_search.cli.job import Job
    from vflowopt_search.cli.preparation import Prepared
    from vflowopt_search.cli.progress import Display
    from vflowopt_search.evaluate.kept import KeptObjective
    from vflowopt_search.evaluate.ledger import Ledger
    from vflowopt_search.outcome import StudyOutcome


@dataclass(frozen=True)
class HeldOut:
    """Samples that no trial sees; chosen and measured unpruned when they are first asked for.

    Args:
        job: what was asked for.
        prepared: the search half.
        ledger: keeps the divergences.
        shown: where progress goes.
    """

    job: Job
    prepared: Prepared
    ledger: Ledger
    shown: Display

    @cached_property
    def samples(self) -> CalibrationSet | None:
        """As many as the search sees, or what is left; None where nothing is, or none wanted."""
        if not self.job.held_out:
            return None
        self.shown.phase("reading held-out samples")
        return held_out_half(self.job, self.prepared.calibration)

    @property
    def expected(self) -> bool:
        """Whether samples are held out, as far as that is known before they are chosen."""
        return self.job.held_out and vars(self).get("samples", True) is not None

    @property
    def note(self) -> str:
        """What to tell of the held-out half: why there is none, or what of it was skipped."""
        if not self.job.held_out or "samples" not in vars(self):
            return ""
        if self.samples is not None:
            measured = vars(self).get("objective")
            return measured.objective.calibration.note if measured is not None else ""
        return (
            f"{self.prepared.calibration.name} has no images left that the search did not see, so "
            "the best strategy was not measured on others; ask for fewer --samples"
        )

    @cached_property
    def objective(self) -> KeptObjective | None:
        """Measures on these samples; None where there are none."""
        from vflowopt_search.evaluate.kept import KeptObjective

        if self.samples is None:
            return None
        self.shown.phase("measuring the whole model on held-out samples", len(self.samples))
        objective = objective_on(self.job, self.prepared.loaded, self.samples, self.shown)
        return KeptObjective(objective, objective.calibration.samples, self.ledger)

    def rescored(self, outcome: StudyOutcome) -> StudyOutcome:
        """The outcome with its best strategy measured on these very samples too, once.

        Raises:
            VFlowOptError: a sample cannot be measured.
        """
        from vflowopt_search.outcome import outcome_of_study
        from vflowopt_search.rescoring import rescore_once

        if not outcome.finished or self.samples is None:
            return outcome
        begin = partial(self.shown.phase, "measuring the best on held-out samples")
        sha256 = self.samples.sha256
        if not rescore_once(outcome.study, sha256, self._usable, begin, self.shown.step):
            return outcome
        return outcome_of_study(outcome.study, self.job.recipe.trials, interrupted=False)

    def _usable(self) -> tuple[KeptObjective, str]:
        """What measures on the samples that the processor takes, and their fingerprint."""
        assert self.objective is not None  # there are samples
        return self.objective, self.objective.objective.calibration.sha256
