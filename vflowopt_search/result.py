"""What `search` gives back: the study, its best strategy, and both in a line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from optuna import Study
from optuna.storages import BaseStorage

from vflowopt_search.database_url import without_password
from vflowopt_search.errors import StudyError
from vflowopt_search.outcome import CONTEXT, StudyOutcome
from vflowopt_search.strategy import Strategy
from vflowopt_search.trials import counts, outcome_of


@dataclass(eq=False, repr=False)
class SearchResult:
    """What `search` found; printed, it is one line.

    Args:
        outcome: all that the study left.
        storage: where the study is; None: in memory only.

    Attributes:
        saved: the file that the best strategy was last saved as.
    """

    outcome: StudyOutcome
    storage: str | Path | BaseStorage | None = None
    saved: Path | None = field(default=None, init=False)

    @property
    def study(self) -> Study:
        """The Optuna study, for Optuna's own plots and frames."""
        return self.outcome.study

    @property
    def best(self) -> Strategy:
        """The best strategy, measured on every calibration sample.

        Raises:
            StudyError: no trial was measured on all of them.
        """
        if self.outcome.best is None:
            raise StudyError(
                f"study {self.study.study_name!r} has no strategy that was measured on every "
                f"calibration sample; search again with more trials"
            )
        return self.outcome.best

    def save(self, path: str | Path) -> None:
        """Write the best strategy's file.

        Raises:
            StudyError: there is no best strategy.
            StrategyError: the file cannot be written.
        """
        self.best.save(path)
        self.saved = Path(path)

    def __repr__(self) -> str:
        return (
            f"SearchResult(study {self.study.study_name!r}{self._where}: {', '.join(self._told())})"
        )

    @property
    def _where(self) -> str:
        if isinstance(self.storage, BaseStorage):
            return ""  # which does not say where it is
        return f" in {'memory' if self.storage is None else without_password(str(self.storage))}"

    def _told(self) -> Iterator[str]:
        """What there is to say of the trials, and of the best of them."""
        ended = [
            outcome_of(trial) for trial in self.study.get_trials(deepcopy=False) if counts(trial)
        ]
        told = ", ".join(f"{number} {how}" for how, number in sorted(Counter(ended).items()))
        number = f"{len(ended) or 'no'} trial{'s' * (len(ended) != 1)}"
        yield f"{number} ({told})" if told else number
        if "retain" in (context := self.study.user_attrs.get(CONTEXT, {})):
            yield f"retain {float(context['retain']):g}"
        yield from self._told_of_best()
        if self.outcome.interrupted:
            yield "interrupted"
        if self.outcome.best is not None:
            yield "not saved yet" if self.saved is None else f"saved as {self.saved}"

    def _told_of_best(self) -> Iterator[str]:
        best = self.outcome.best
        if best is None or self.outcome.divergence is None:
            yield "nothing found"
            return
        yield f"divergence {self.outcome.divergence:.4g}"
        measured = best.provenance.objective if best.provenance else None
        if measured is not None and measured.held_out is not None:
            yield f"held out {measured.held_out:.4g}"
        if self.outcome.textbook is not None:
            yield f"the textbook strategy `{self.outcome.textbook}`"
