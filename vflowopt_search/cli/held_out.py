"""The held-out half of `search`: samples that no trial sees, for the best and the baselines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING

from vflowopt_search.cli.preparation import held_out_half, objective_on
from vflowopt_search.cli.progress import UNPRUNED, phased
from vflowopt_search.errors import CalibrationError

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

    Attributes:
        faults: why data that has other samples gave none that can be used.
    """

    job: Job
    prepared: Prepared
    ledger: Ledger
    shown: Display
    faults: list[str] = field(default_factory=list, init=False)

    @cached_property
    def samples(self) -> CalibrationSet | None:
        """As many as the search sees, or what is left; None where nothing is, or none wanted."""
        if not self.job.held_out:
            return None
        self.shown.phase("reading held-out samples")
        with self._finding_faults():
            return held_out_half(self.job, self.prepared.chosen)
        return None

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
            return measured.objective.calibration.held_out_note if measured is not None else ""
        if self.faults:
            return f"the strategy found was not measured on held-out samples: {self.faults[0]}"
        return (
            f"{self.prepared.calibration.name} has no images left that the search did not see, so "
            "the strategy found was not measured on others; ask for fewer --samples"
        )

    @cached_property
    def objective(self) -> KeptObjective | None:
        """Measures on these samples; None where there are none."""
        from vflowopt_search.evaluate.kept import KeptObjective

        if self.samples is None:
            return None
        progress = phased(self.shown, f"{UNPRUNED} on held-out samples")
        with self._finding_faults():
            objective = objective_on(self.job, self.prepared.loaded, self.samples, progress)
            return KeptObjective(objective, objective.calibration.samples, self.ledger)
        vars(self)["samples"] = None
        return None

    def require_all(self) -> None:
        """Read all held-out samples, and let the processor look at each, before any is measured.

        Raises:
            CalibrationError: one cannot be used.
        """
        from vflowopt_search.calibration.encoding import encode

        if self.samples is not None:
            self.shown.phase("checking held-out samples", len(self.samples))
            for number, sample in enumerate(self.samples.samples, start=1):
                encode(self.prepared.loaded[1], [sample])
                self.shown.step(number, len(self.samples))

    def rescored(self, outcome: StudyOutcome) -> StudyOutcome:
        """The outcome with its best strategy measured on these very samples too, once.

        Raises:
            VFlowOptError: a sample cannot be measured.
        """
        from vflowopt_search.outcome import outcome_of_study
        from vflowopt_search.rescoring import needs_rescoring, rescore_once

        if not outcome.finished or self.samples is None:
            return outcome
        if needs_rescoring(outcome.study, self.samples.sha256) and self.objective is None:
            return outcome
        begin = partial(self.shown.phase, "measuring the best on held-out samples")
        sha256 = self.samples.sha256
        if not rescore_once(outcome.study, sha256, self._usable, begin, self.shown.step):
            return outcome
        return outcome_of_study(outcome.study, self.job.recipe.trials, interrupted=False)

    @contextmanager
    def _finding_faults(self) -> Iterator[None]:
        """Go on without samples that cannot be used, unless each of them must be."""
        try:
            yield
        except CalibrationError as error:
            if self.job.data.strict:
                raise
            self.faults.append(str(error))

    def _usable(self) -> tuple[KeptObjective, str]:
        """What measures on the samples that the processor takes, and their fingerprint."""
        assert self.objective is not None  # there are samples
        return self.objective, self.objective.objective.calibration.sha256
