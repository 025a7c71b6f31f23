"""Trials that other workers made needless: the total stays exact, and no slot is lost."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.storages import InMemoryStorage

from tests.fake_study import Disturbed, FakeObjective, fake_run, story
from tests.other_processes import ended_process
from tests.test_rounds import outcomes
from tests.test_several_workers import FEW, Raced, left_behind, undisturbed
from vflowopt_search import recovery, trials
from vflowopt_search.recovery import close_needless, recover, why_needless
from vflowopt_search.storage import open_storage


def test_a_trial_to_be_retried_is_done_before_one_that_was_made_after_it() -> None:
    storage = Raced()
    study = fake_run(FakeObjective(num_samples=FEW), storage, total=5).study

    def another_dies_and_is_recovered() -> None:
        left = study.ask()
        left.set_user_attr(trials.OWNER, ended_process())
        left.set_user_attr(trials.SLOT, 5)
        recover(study, storage)

    storage.before, storage.another = "trial", another_dies_and_is_recovered
    outcome = fake_run(FakeObjective(num_samples=FEW), storage, total=6)
    assert [trials.counts(trial) for trial in outcome.study.trials[5:]] == [False, True, False]
    assert outcome.study.trials[6].user_attrs[trials.RETRY_OF] == 5
    assert story(outcome.study) == undisturbed(6)


def test_a_retry_that_two_enqueued_is_one_of_the_trials_to_come() -> None:
    storage = Raced()
    study = fake_run(FakeObjective(num_samples=FEW), storage, total=5).study

    def two_recover_another() -> None:
        left = study.ask()
        left.set_user_attr(trials.OWNER, ended_process())
        left.set_user_attr(trials.SLOT, 5)
        recover(study, storage)
        study.add_trial(study.trials[6])

    storage.before, storage.another = "trial", two_recover_another
    outcome = fake_run(FakeObjective(num_samples=FEW), storage, total=7)
    assert outcome.finished
    assert [trial.number for trial in outcome.study.trials if trials.counts(trial)][5:] == [6, 8]


def test_a_retry_that_was_needless_is_made_once_more_trials_are_wanted() -> None:
    storage = InMemoryStorage()
    study = left_behind(storage, ended_process())
    others = study.ask()
    others.set_user_attr(trials.SLOT, 4)
    others.set_user_attr(trials.PER_SAMPLE, [0.5] * FEW)
    study.tell(others, 0.5)
    recover(study, storage)
    retry = study.ask()
    reason = why_needless(study, storage, retry, 4)
    assert reason == "other workers began the last trials"
    close_needless(study, retry, reason)
    for _ in range(3):
        recover(study, storage)
    assert outcomes(study)[3:] == ["abandoned", "complete", "abandoned", "waiting"]
    outcome = fake_run(FakeObjective(num_samples=FEW), storage, total=6)
    assert "waiting" not in outcomes(outcome.study)
    slots = [t.user_attrs[trials.SLOT] for t in outcome.study.trials if trials.counts(t)]
    assert sorted(slots) == list(range(6))


@given(st.lists(st.sampled_from(["signed", "unsigned", "needless"])))
def test_slots_are_without_gaps_whichever_trials_were_needless(kinds: list[str]) -> None:
    study = optuna.create_study(storage=InMemoryStorage())
    slots = []
    for kind in kinds:
        trial = study.ask()
        slot = trials.slot_of(study, study.trials[trial.number])
        if kind != "unsigned":  # else its process dies before it writes it
            trial.set_user_attr(trials.SLOT, slot)
        if kind == "needless":
            close_needless(study, trial, "others began the last ones")
        else:
            slots.append(slot)
    assert slots == list(range(len(slots)))


@pytest.mark.parametrize("place", ["study.journal", "study.db"])
def test_a_trial_that_nobody_signed_does_not_hold_up_the_last_ones(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "SIGNING_SECONDS", 0.1)
    monkeypatch.setattr(recovery, "UNSIGNED_TRIAL", timedelta(seconds=20))
    path = tmp_path / place
    storage = open_storage(f"sqlite:///{path}" if path.suffix == ".db" else path)

    def another_dies_before_it_signs() -> None:
        [study] = storage.get_all_studies()
        storage.create_new_trial(study._study_id)

    disturbed = Disturbed(num_samples=FEW, happens=another_dies_before_it_signs)
    outcome = fake_run(disturbed, storage, total=5)
    assert outcome.finished
    found = outcomes(outcome.study)
    assert found.count("running") == 1 and {"abandoned", "waiting"}.isdisjoint(found)
    assert trials.num_counted(outcome.study.trials) == 5
