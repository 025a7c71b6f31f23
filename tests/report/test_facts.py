"""The words and numbers of the summary are those of the run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import optuna
import pytest

from tests.fake_study import fake_run
from vflowopt_search.report import frames
from vflowopt_search.report.facts import OWN_QUESTIONS, Result, facts, results
from vflowopt_search.report.runs import Run
from vflowopt_search.report.words import FOUND
from vflowopt_search.trials import is_full, value_of

SUMMARY: dict[str, Any] = {
    "trials": {"asked": 20},
    "environment": {"device": "cpu", "dtype": "float32"},
    "comparison": [
        {"name": "unpruned", "retained": 1.0, "divergence": 0.0, "accuracy": 0.9},
        {"name": "found", "retained": 0.25, "divergence": 9.0, "accuracy": 0.8},
        {"name": "random", "retained": 0.25, "divergence": 2.0, "accuracy": 0.5},
    ],
}


@pytest.fixture(scope="module")
def run() -> Run:
    outcome = fake_run(total=16)
    assert outcome.best_trial is not None
    summary = SUMMARY | {"best": {"trial": outcome.best_trial.number}}
    return Run(outcome.study, outcome.best, {"random": 2.0}, summary=summary)


def lowest(run: Run) -> float:
    return min(value_of(trial) for trial in run.study.trials if is_full(trial))


def test_results_hold_what_was_measured(run: Run) -> None:
    unpruned, found, *others = results(run)
    assert unpruned == Result("unpruned", 1.0, 0.0, accuracy=0.9, scored=OWN_QUESTIONS)
    assert found.name == FOUND and found.accuracy == 0.8 and found.retained == 0.25
    assert found.divergence == lowest(run)
    assert Result("random", 0.25, 2.0, accuracy=0.5, scored=OWN_QUESTIONS) in others
    beside = frames.comparison(run.study, run.baselines).baselines
    assert {row.name: row.divergence for row in others} == beside and len(beside) > 1
    assert [row.divergence for row in others] == sorted(beside.values())


def test_accuracies_of_two_sets_of_questions_do_not_share_a_column(run: Run) -> None:
    kept = {"value": 0.5, "low": 0.4, "high": 0.6}
    evaluated = {
        "format": "vflowopt-evaluation/1",
        "unpruned": 0.6,
        "samples": 80,
        "metric": "anls",
        "data": {"name": "qa"},
        "strategies": [{"name": "fake", "accuracy": 0.3, "kept": kept, "retained": 0.25}],
    }
    rows = {row.name: row for row in results(replace(run, evaluation=evaluated))}
    assert rows["unpruned"].accuracy == 0.6
    assert (rows[FOUND].accuracy, rows[FOUND].scored) == (0.3, "80 labelled samples of qa, anls")
    assert rows["random"].accuracy is None and rows["random"].divergence == 2.0
    assert rows["random"].scored is None


def test_what_was_measured_of_an_earlier_best_is_not_told(run: Run) -> None:
    later = Run(run.study, run.strategy, summary=SUMMARY | {"best": {"trial": 99}})
    found = next(row for row in results(later) if row.name == FOUND)
    assert found.accuracy is None and found.divergence == lowest(run)


def test_facts_tell_of_a_finished_run(run: Run) -> None:
    told = facts(run)
    assert told["model"] == "fake"
    assert told["calibration"] == "fake-samples: 24 samples (fingerprint c0ffee)"
    assert told["divergence"].startswith("1 - cosine")
    asked = "25.0% of the visual tokens, mean over the decoder layers"
    assert told["target retention ratio"] == asked
    assert told["retention ratio of the strategy"] == "25.0%, computed from its keep ratios"
    assert "measured retention ratio" not in told  # no overlays were recorded
    assert told["trials"].startswith("16 of 20 done, ")
    assert told["run"] == "seed 0, tpe sampler, cpu, float32"
    assert "racing saved" in told["sample evaluations"]
    assert "optuna" in told["versions"]


def test_the_held_out_half_is_told_where_it_was_measured(run: Run) -> None:
    assert run.strategy is not None and run.strategy.provenance is not None
    origin = run.strategy.provenance
    assert origin.objective is not None and origin.calibration is not None
    assert "held-out" not in facts(run)["found"]
    origin = origin.model_copy(
        update={
            "objective": origin.objective.model_copy(update={"held_out": 0.125}),
            "calibration": origin.calibration.model_copy(update={"held_out": 12}),
        }
    )
    again = Run(run.study, run.strategy.model_copy(update={"provenance": origin}))
    told = facts(again)
    assert told["found"].endswith("; 0.125 on held-out samples")
    assert "24 samples and 12 held-out samples" in told["calibration"]
    assert results(again)[0].held_out == 0.125


def test_facts_of_an_empty_study_say_so() -> None:
    told = facts(Run(optuna.create_study(study_name="empty")))
    assert told == {"found": "none yet", "trials": "0 done"}
    assert results(Run(optuna.create_study(study_name="empty"))) == []
