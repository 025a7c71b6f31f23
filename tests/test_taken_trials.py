"""A worker that slept for so long that others took its trials: it goes on with what is left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import optuna
import pytest
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from tests.fake_study import FakeObjective, fake_run, story
from tests.test_rounds import outcomes
from vflowopt_search import trials
from vflowopt_search.recovery import recover
from vflowopt_search.storage import open_storage
from vflowopt_search.strategy import Strategy


class Sleeper(FakeObjective):
    """Sleeps in its fourth call, while another process takes one of its trials, or all."""

    def __init__(self, where: str | Path, *, all_taken: bool, error: Exception | None) -> None:
        super().__init__(num_samples=9)
        self.where, self.all_taken, self.error = where, all_taken, error

    def measure_many(
        self, strategies: Sequence[Strategy], indices: Sequence[int]
    ) -> list[list[float]]:
        values = super().measure_many(strategies, indices)
        if len(self.together) == 4:
            self.take(open_storage(self.where))
            if self.error is not None:
                raise self.error
        return values

    def take(self, storage: BaseStorage) -> None:
        study = optuna.load_study(study_name="fake", storage=storage)
        if self.all_taken:
            recover(study, storage)  # a process of this one's name: all that run here are left
        else:
            running = study.get_trials(states=(TrialState.RUNNING,))
            study.tell(running[-1].number, state=TrialState.FAIL)


@pytest.fixture(params=["journal", "database"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str | Path:
    """Of a study, in either kind of storage."""
    journal = tmp_path / "study.journal"
    return journal if request.param == "journal" else f"sqlite:///{tmp_path}/study.db"


@pytest.mark.parametrize(("together", "all_taken"), [(1, True), (1, False), (3, True), (3, False)])
def test_a_worker_whose_trials_were_taken_goes_on(
    where: str | Path, together: int, all_taken: bool
) -> None:
    sleeper = Sleeper(where, all_taken=all_taken, error=None)
    outcome = fake_run(sleeper, where, total=9, trials_per_batch=together)
    assert outcome.finished
    assert trials.num_counted(outcome.study.trials) == 9
    assert outcomes(outcome.study).count("abandoned") == together
    assert {"running", "waiting"}.isdisjoint(outcomes(outcome.study))
    undisturbed = fake_run(FakeObjective(num_samples=9), total=9, trials_per_batch=together)
    assert story(outcome.study) == story(undisturbed.study)


def test_an_error_is_not_hidden_by_a_trial_that_was_taken(where: str | Path) -> None:
    sleeper = Sleeper(where, all_taken=True, error=RuntimeError("the GPU did not wake up"))
    with pytest.raises(RuntimeError, match="did not wake up"):
        fake_run(sleeper, where, total=9)
    assert fake_run(FakeObjective(num_samples=9), where, total=9).finished
