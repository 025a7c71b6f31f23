"""Studies: racing, resuming, determinism, what is exported and what fails; no model needed."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from math import fsum
from pathlib import Path
from typing import Any, get_args

import optuna
import pytest
from optuna.storages import InMemoryStorage

from tests.fake_study import CONTEXT, FakeObjective, fake_run, fake_space, story
from vflowopt_search import trials
from vflowopt_search.budget import mean_retained
from vflowopt_search.errors import DivergenceError, StudyError
from vflowopt_search.outcome import TrialReport
from vflowopt_search.sampling import SamplerName
from vflowopt_search.settings import StudySettings
from vflowopt_search.strategy import Strategy


class Failing(FakeObjective):
    """Raises `error` at the n-th call."""

    def __init__(self, at: int, error: BaseException) -> None:
        super().__init__()
        self.calls, self.at, self.error = 0, at, error

    def measure(self, strategy: Strategy, indices: Sequence[int]) -> list[float]:
        self.calls += 1
        if self.calls == self.at:
            raise self.error
        return super().measure(strategy, indices)


def test_the_best_is_fully_measured_and_knows_where_it_comes_from() -> None:
    outcome = fake_run(total=20)
    best, trial = outcome.best, outcome.best_trial
    assert best is not None and trial is not None
    assert best.provenance is not None and best.provenance.objective is not None
    assert best.budget is not None and best.budget.mean_retained == 0.25
    assert mean_retained(best.stages, 8) == pytest.approx(0.25, abs=1e-9)
    assert best.provenance.study == "fake" and best.provenance.trial == trial.number
    assert best.provenance.objective.divergence == outcome.divergence == trial.value
    assert best.provenance.calibration is not None
    assert best.provenance.calibration.samples == len(outcome.per_sample) == 24
    assert outcome.divergence == pytest.approx(fsum(outcome.per_sample) / 24)
    assert best.provenance.created is not None and best.provenance.created.endswith("+00:00")
    assert {"optuna", "torch", "vflowopt-search"} <= set(best.provenance.versions)
    assert outcome.per_sample == tuple(FakeObjective().measure(best, range(24)))
    assert Strategy.loads(best.to_json()) == best


def test_textbook_strategies_come_first_at_the_same_budget() -> None:
    textbook = fake_space().textbook()
    outcome = fake_run(total=len(textbook) + 1)
    first = outcome.study.trials[: len(textbook)]
    assert [trial.user_attrs[trials.TEXTBOOK] for trial in first] == list(textbook)
    assert [trial.params for trial in first] == list(textbook.values())
    assert trials.TEXTBOOK not in outcome.study.trials[-1].user_attrs
    for trial in outcome.study.trials:
        strategy = Strategy.loads(trial.user_attrs[trials.STRATEGY])
        assert mean_retained(strategy.stages, 8) == pytest.approx(0.25, abs=1e-9)


def test_racing_saves_measurements_and_loses_little() -> None:
    full, raced = FakeObjective(), FakeObjective()
    without = fake_run(full, total=40, racing=False)
    racing = fake_run(raced, total=40)
    assert full.measured == 40 * 24
    assert raced.measured < full.measured / 2
    assert racing.divergence is not None and without.divergence is not None
    assert racing.divergence < without.divergence + 0.1


def test_equal_strategies_do_not_hold_racing_up() -> None:
    class Flat(FakeObjective):
        def measure(self, strategy: Strategy, indices: Sequence[int]) -> list[float]:
            self.measured += len(indices)
            return [0.5] * len(indices)

    flat, start = Flat(num_samples=104), time.monotonic()  # the first look is at 13 samples
    assert fake_run(flat, total=10).finished
    assert flat.measured == 10 * 104  # none is worse than another
    assert time.monotonic() - start < 20  # scipy's enumeration took 4 s for each trial


def test_a_stopped_trial_keeps_its_partial_mean_and_says_so() -> None:
    outcome = fake_run(total=20)
    stopped = [t for t in outcome.study.trials if trials.outcome_of(t) == "stopped"]
    assert stopped
    for trial in stopped:
        seen = trials.measured(trial)
        assert 8 <= len(seen) == trial.user_attrs[trials.SAMPLES_SEEN] < 24
        assert trial.value == pytest.approx(fsum(seen) / len(seen))
        assert trial.intermediate_values == {
            sample: value
            for sample, value in enumerate(trials.per_sample(trial))
            if value is not None
        }


def test_a_partly_measured_trial_is_never_exported() -> None:
    outcome = fake_run(total=8)
    lucky = optuna.create_trial(
        state=optuna.trial.TrialState.COMPLETE,
        value=0.0,
        user_attrs={
            trials.PER_SAMPLE: [0.0] * 23 + [None],
            trials.STRATEGY: outcome.study.trials[0].user_attrs[trials.STRATEGY],
        },
    )
    outcome.study.add_trial(lucky)
    assert outcome.study.best_value == 0.0
    best = trials.best_full(outcome.study.trials)
    assert best is not None and best.value == outcome.divergence


def test_same_seed_same_study_and_another_seed_another() -> None:
    first, again, other = (fake_run(seed=seed) for seed in (3, 3, 4))
    assert story(first.study) == story(again.study)
    assert story(first.study) != story(other.study)


def test_every_sampler_draws_in_a_way_of_its_own() -> None:
    warm = 3 + 10  # the textbook, and what TPE and the Gaussian process draw at random
    studies = [
        fake_run(total=warm + 2, sampler=name, racing=False).study for name in get_args(SamplerName)
    ]
    last = {repr(sorted(study.trials[-1].params.items())) for study in studies}
    assert len(last) == len(studies) == 4


@pytest.mark.parametrize(
    ("sampler", "stops"), [("tpe", (1, 2, 5)), ("tpe", (13,)), ("random", (4,)), ("gp", (12,))]
)
def test_stopping_and_going_on_gives_the_same_study(
    tmp_path: Path, sampler: str, stops: tuple[int, ...]
) -> None:
    objective = FakeObjective(num_samples=12)
    for total in (*stops, 14):
        journal = tmp_path / "study.journal"
        outcome = fake_run(objective, journal, total=total, sampler=sampler)
        assert trials.num_counted(outcome.study.trials) == total
    assert story(outcome.study) == story(fake_run(objective, total=14, sampler=sampler).study)


@pytest.mark.parametrize("call", [1, 2, 5, 9, 17])
def test_ctrl_c_costs_nothing(call: int) -> None:
    storage = InMemoryStorage()
    outcome = fake_run(Failing(call, KeyboardInterrupt()), storage)
    assert outcome.interrupted and not outcome.finished
    assert (outcome.best is None) == (call <= 3)  # the first trial takes three batches
    resumed = fake_run(storage=storage)
    assert resumed.finished and not resumed.interrupted
    assert [t.user_attrs.get(trials.ABANDONED) for t in resumed.study.trials].count(
        "interrupted"
    ) == 1
    assert story(resumed.study) == story(fake_run().study)


def test_a_finished_study_ends_at_once() -> None:
    storage = InMemoryStorage()
    before = story(fake_run(storage=storage).study)
    objective = FakeObjective()
    outcome = fake_run(objective, storage)
    assert outcome.finished and outcome.best is not None and objective.measured == 0
    assert story(outcome.study) == before


def test_a_divergence_that_is_not_finite_fails_its_trial_only() -> None:
    reports: list[TrialReport] = []
    error = DivergenceError("sample 7 has divergence nan; use another dtype")
    outcome = fake_run(Failing(4, error), on_trial=reports.append)
    assert outcome.finished and len(reports) == 16
    assert [report.outcome for report in reports].count("failed") == 1
    failed = reports[1]
    assert failed.outcome == "failed" and failed.value is None and failed.done == 2
    assert failed.failure == f"DivergenceError: {error}"
    assert outcome.study.trials[1].state is optuna.trial.TrialState.FAIL


def test_another_error_is_raised_and_costs_one_trial() -> None:
    storage = InMemoryStorage()
    with pytest.raises(RuntimeError, match="assert"):
        fake_run(Failing(4, RuntimeError("device-side assert")), storage)
    outcome = fake_run(storage=storage)
    assert outcome.finished and trials.num_counted(outcome.study.trials) == 16
    assert outcome.study.trials[1].user_attrs[trials.FAILURE] == "RuntimeError: device-side assert"


def test_reports_tell_the_state_of_the_search() -> None:
    reports: list[TrialReport] = []
    outcome = fake_run(on_trial=reports.append)
    assert [report.done for report in reports] == list(range(1, 17))
    assert {report.total for report in reports} == {16}
    best = [report.best for report in reports]
    assert best == sorted(best, key=lambda value: -(value or 0))
    assert best[-1] == outcome.divergence
    assert reports[0].textbook == next(iter(fake_space().textbook()))
    assert all(report.samples_seen >= 8 for report in reports)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"retain": 0.5}, "retain 0.25 but is resumed with retain 0.5"),
        ({"seed": 1}, "seed 0 but is resumed with seed 1"),
        ({"racing": False}, "racing True but is resumed with racing False"),
        ({"sampler": "gp"}, "sampler 'tpe' but is resumed with sampler 'gp'"),
        ({"metric": "kl"}, "metric 'last_token_cosine' but is resumed with metric 'kl'"),
        ({"num_samples": 25}, "samples 24 but is resumed with samples 25"),
        ({"space_sha256": "dead"}, "space_sha256 'beef' but is resumed with space_sha256 'dead'"),
        ({"dataset": "new"}, "dataset None but is resumed with dataset 'new'"),
    ],
)
def test_another_context_is_refused(change: dict[str, Any], said: str) -> None:
    from vflowopt_search.study import run_study

    storage = InMemoryStorage()
    fake_run(storage=storage, total=1)
    settings = {"retain": 0.25, "seed": 0, "racing": True, "sampler": "tpe"}
    measured = {"num_samples": 24, "metric": "last_token_cosine"}
    context = {**CONTEXT, **change} if not {*settings, *measured} & {*change} else CONTEXT
    with pytest.raises(StudyError, match=re.escape(said) + ".*another output folder"):
        run_study(
            FakeObjective(**{k: change.get(k, v) for k, v in measured.items()}),
            fake_space(),
            StudySettings("fake", trials=2, **{k: change.get(k, v) for k, v in settings.items()}),
            storage=storage,
            context=context,
        )


def test_a_foreign_study_is_refused() -> None:
    storage = InMemoryStorage()
    foreign = optuna.create_study(storage=storage, study_name="fake")
    foreign.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    with pytest.raises(StudyError, match="was made with metric None"):
        fake_run(storage=storage)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"retain": 0.0}, "retain is 0.0 but must be in "),
        ({"retain": 1.5}, "retain is 1.5 but must be in "),
        (
            {"retain": 1.0},
            "retain is 1, which keeps everything, so that there is nothing to search",
        ),
        ({"trials": 0}, "trials is 0 but must be at least 1"),
        ({"seed": -1}, "seed is -1 but must not be negative"),
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(StudyError, match=said):
        StudySettings(**{"name": "x", "retain": 0.1, "trials": 1, **wrong})


def test_optuna_talks_as_before_after_a_study() -> None:
    before = optuna.logging.get_verbosity()
    fake_run(total=1)
    with pytest.raises(RuntimeError, match="x"):
        fake_run(Failing(1, RuntimeError("x")), total=1)
    assert optuna.logging.get_verbosity() == before
