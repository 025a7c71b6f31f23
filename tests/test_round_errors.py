"""Errors while a round is measured: whose they are, and that the others go on."""

from __future__ import annotations

from collections.abc import Sequence

import optuna
import pytest
from optuna.storages import InMemoryStorage

from tests.fake_study import FakeObjective, fake_run, story
from tests.test_rounds import DEAD, Killed, outcomes
from vflowopt_search import recovery, sampling, trials
from vflowopt_search.errors import DivergenceError, ModelError
from vflowopt_search.outcome import TrialReport
from vflowopt_search.strategy import Strategy


class Poisoned(FakeObjective):
    """Raises `error` wherever the strategy of slot 5 takes part, `times` times."""

    def __init__(self, error: BaseException, times: int = 1000) -> None:
        super().__init__()
        self.error, self.times = error, times

    def measure_many(
        self, strategies: Sequence[Strategy], indices: Sequence[int]
    ) -> list[list[float]]:
        if self.times > 0 and any(strategy.name == "fake-5" for strategy in strategies):
            self.times -= 1
            raise self.error
        return super().measure_many(strategies, indices)


def test_a_divergence_that_is_not_finite_fails_its_trial_only() -> None:
    error = DivergenceError("sample 7 has divergence nan; use another dtype")
    reports: list[TrialReport] = []
    outcome = fake_run(Poisoned(error), total=9, trials_per_batch=3, on_trial=reports.append)
    assert outcome.finished and len(outcome.study.trials) == 9
    [failed] = [report for report in reports if report.outcome == "failed"]
    assert failed.number == 5 and failed.failure == f"DivergenceError: {error}"
    others = fake_run(total=6, trials_per_batch=3).study
    assert story(outcome.study)[:5] == story(others)[:5]


def test_an_error_that_has_a_strategy_fails_that_one_and_is_raised() -> None:
    storage, error = InMemoryStorage(), ModelError("one sample does not fit in memory")
    with pytest.raises(ModelError, match="does not fit"):
        fake_run(Poisoned(error), storage, total=9, trials_per_batch=3)
    study = only(storage)
    assert outcomes(study)[3:] == ["abandoned", "abandoned", "failed", "waiting", "waiting"]
    outcome = fake_run(Poisoned(error), storage, total=9, trials_per_batch=3)
    assert outcome.finished and trials.num_counted(outcome.study.trials) == 9
    assert [t.user_attrs[trials.SLOT] for t in outcome.study.trials if failed(t)] == [5]


def test_an_error_that_nobody_can_be_blamed_for_is_found_out_one_by_one() -> None:
    storage, error = InMemoryStorage(), MemoryError("40 GiB wanted")
    with pytest.raises(MemoryError, match="40 GiB"):
        fake_run(Poisoned(error), storage, total=9, trials_per_batch=3)
    waiting = ["abandoned"] * 3 + ["waiting"] * 3
    assert outcomes(only(storage))[3:] == waiting
    reason = only(storage).trials[3].user_attrs[trials.ABANDONED]
    assert reason == "measured with others, MemoryError: 40 GiB wanted"
    with pytest.raises(MemoryError, match="40 GiB"):
        fake_run(Poisoned(error), storage, total=9, trials_per_batch=3)
    outcome = fake_run(Poisoned(error), storage, total=9, trials_per_batch=3)
    assert outcome.finished and trials.num_counted(outcome.study.trials) == 9
    assert [t.user_attrs[trials.SLOT] for t in outcome.study.trials if failed(t)] == [5]


def test_after_an_error_that_does_not_come_again_the_study_is_the_same() -> None:
    storage, objective = InMemoryStorage(), Poisoned(MemoryError("for once"), times=1)
    with pytest.raises(MemoryError):
        fake_run(objective, storage, total=9, trials_per_batch=3)
    outcome = fake_run(objective, storage, total=9, trials_per_batch=3)
    assert objective.together.count(1) >= 3  # each by itself
    assert story(outcome.study) == story(fake_run(total=9, trials_per_batch=3).study)


def test_a_strategy_that_kills_its_process_takes_nobody_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    storage = InMemoryStorage()
    with monkeypatch.context() as other_process:
        other_process.setattr(sampling, "this_process", lambda: DEAD)
        for _ in range(recovery.MAX_DEATHS):
            # what a killed process leaves: its trials run
            other_process.setattr(recovery.Recovering, "__exit__", lambda *_: None)
            with pytest.raises(Killed):
                fake_run(Poisoned(Killed()), storage, total=9, trials_per_batch=3)
    outcome = fake_run(Poisoned(Killed()), storage, total=9, trials_per_batch=3)
    assert outcome.finished and trials.num_counted(outcome.study.trials) == 9
    [culprit] = [trial for trial in outcome.study.trials if failed(trial)]
    assert culprit.user_attrs[trials.SLOT] == 5
    assert "3 processes died" in culprit.user_attrs[trials.FAILURE]


def failed(trial: optuna.trial.FrozenTrial) -> bool:
    return trials.outcome_of(trial) == "failed"


def only(storage: InMemoryStorage) -> optuna.Study:
    return optuna.load_study(study_name="fake", storage=storage)
