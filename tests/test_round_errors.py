"""Errors while a round is measured: whose they are, and that the others go on."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import optuna
import pytest
from optuna.storages import InMemoryStorage

from tests.fake_study import FakeObjective, fake_run, story
from tests.test_rounds import DEAD, Killed, outcomes
from vflowopt_search import recovery, sampling, trials
from vflowopt_search.errors import DivergenceError, ModelError, OutOfMemoryError, StudyError
from vflowopt_search.outcome import TrialReport
from vflowopt_search.rounds import MAX_OUT_OF_MEMORY
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
    storage, error = InMemoryStorage(), ModelError("the model has no layer 9")
    with pytest.raises(ModelError, match="no layer 9"):
        fake_run(Poisoned(error), storage, total=9, trials_per_batch=3)
    study = only(storage)
    assert outcomes(study)[3:] == ["abandoned", "abandoned", "failed", "waiting", "waiting"]
    outcome = fake_run(Poisoned(error), storage, total=9, trials_per_batch=3)
    assert outcome.finished and trials.num_counted(outcome.study.trials) == 9
    assert [t.user_attrs[trials.SLOT] for t in outcome.study.trials if failed(t)] == [5]


@pytest.mark.parametrize("error", [OutOfMemoryError("no room"), MemoryError("40 GiB wanted")])
@pytest.mark.parametrize("together", [1, 3])
def test_out_of_memory_costs_its_trial_and_no_other(error: Exception, together: int) -> None:
    reports: list[TrialReport] = []
    poisoned = Poisoned(error)
    outcome = fake_run(poisoned, total=9, trials_per_batch=together, on_trial=reports.append)
    assert outcome.finished and len(outcome.study.trials) == 9
    [told] = [report.failure for report in reports if report.outcome == "failed"]
    assert told == f"{type(error).__name__}: {error}"
    others = fake_run(total=5, trials_per_batch=together).study
    assert story(outcome.study)[:5] == story(others)[:5]


class Small(FakeObjective):
    """A device on which no strategy fits from its `first` call on, `times` times."""

    def __init__(self, first: int, times: int) -> None:
        super().__init__()
        self.first, self.last = first, first + times

    def measure_many(
        self, strategies: Sequence[Strategy], indices: Sequence[int]
    ) -> list[list[float]]:
        if self.first <= len(self.together) < self.last:
            self.together.append(0)
            raise OutOfMemoryError("sample 3 does not fit in memory; use a smaller dtype")
        return super().measure_many(strategies, indices)


def test_a_search_in_which_nothing_fits_ends_with_one_sentence() -> None:
    storage = InMemoryStorage()
    said = r"5 trials in a row did not fit in memory \(the last: sample 3 .*\); free memory or .*"
    with pytest.raises(StudyError, match=said):
        fake_run(Small(6, 1000), storage)
    assert outcomes(only(storage))[-MAX_OUT_OF_MEMORY:] == ["failed"] * MAX_OUT_OF_MEMORY
    assert "running" not in outcomes(only(storage))
    outcome = fake_run(storage=storage)
    assert outcome.finished and trials.num_counted(outcome.study.trials) == 16


def test_what_did_not_fit_is_let_go_of_before_the_others_are_measured() -> None:
    class Batch:
        """Stands for the tensors of a batch."""

    class Holding(FakeObjective):
        def measure_many(
            self, strategies: Sequence[Strategy], indices: Sequence[int]
        ) -> list[list[float]]:
            if len(strategies) == 1 and batches:
                held.append(batches[-1]() is not None)
            batch = Batch()
            batches.append(weakref.ref(batch))
            if any(strategy.name == "fake-4" for strategy in strategies):
                raise OutOfMemoryError("no room")
            return super().measure_many(strategies, indices)

    batches: list[weakref.ref[Batch]] = []
    held: list[bool] = []
    fake_run(Holding(), total=9, trials_per_batch=3)
    assert held and not any(held)


def test_a_search_in_which_some_do_not_fit_goes_on() -> None:
    outcome = fake_run(Small(6, MAX_OUT_OF_MEMORY - 1))
    assert outcome.finished
    assert outcomes(outcome.study).count("failed") == MAX_OUT_OF_MEMORY - 1


def test_an_error_that_nobody_can_be_blamed_for_is_found_out_one_by_one() -> None:
    storage, error = InMemoryStorage(), RuntimeError("device-side assert")
    with pytest.raises(RuntimeError, match="assert"):
        fake_run(Poisoned(error), storage, total=9, trials_per_batch=3)
    waiting = ["abandoned"] * 3 + ["waiting"] * 3
    assert outcomes(only(storage))[3:] == waiting
    reason = only(storage).trials[3].user_attrs[trials.ABANDONED]
    assert reason == "measured with others, RuntimeError: device-side assert"
    with pytest.raises(RuntimeError, match="assert"):
        fake_run(Poisoned(error), storage, total=9, trials_per_batch=3)
    outcome = fake_run(Poisoned(error), storage, total=9, trials_per_batch=3)
    assert outcome.finished and trials.num_counted(outcome.study.trials) == 9
    assert [t.user_attrs[trials.SLOT] for t in outcome.study.trials if failed(t)] == [5]


def test_after_an_error_that_does_not_come_again_the_study_is_the_same() -> None:
    storage, objective = InMemoryStorage(), Poisoned(RuntimeError("for once"), times=1)
    with pytest.raises(RuntimeError):
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
