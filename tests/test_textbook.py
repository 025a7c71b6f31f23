"""Where no trial beats a textbook strategy, everybody who tells of the result says so."""

from __future__ import annotations

import html
from dataclasses import replace
from pathlib import Path

import pytest
from optuna.trial import TrialState, create_trial

from tests.command import run
from tests.fake_study import fake_run
from vflowopt_search import run_folder
from vflowopt_search.outcome import StudyOutcome
from vflowopt_search.report.facts import facts
from vflowopt_search.report.page import write_report
from vflowopt_search.report.runs import Run
from vflowopt_search.result import SearchResult
from vflowopt_search.textbook import unbeaten
from vflowopt_search.trials import FAILURE, TEXTBOOK, unbeaten_textbook


@pytest.fixture(scope="module")
def textbook() -> StudyOutcome:
    """Of a study that has drawn nothing better than its textbook."""
    outcome = fake_run(total=6)
    assert outcome.best_trial is not None and TEXTBOOK in outcome.best_trial.user_attrs
    return outcome


@pytest.fixture(scope="module")
def begun() -> StudyOutcome:
    """Of a study that has tried its textbook only."""
    return fake_run(total=3)


@pytest.fixture(scope="module")
def drawn() -> StudyOutcome:
    """Of a study that has drawn something better."""
    outcome = fake_run(total=30)
    assert outcome.best_trial is not None and TEXTBOOK not in outcome.best_trial.user_attrs
    return outcome


def sentence_of(outcome: StudyOutcome) -> str:
    assert outcome.best_trial is not None
    return unbeaten(outcome.best_trial.user_attrs[TEXTBOOK])


def page_of(tmp_path: Path, *runs: Run) -> str:
    write_report(runs, tmp_path / "report.html")
    return html.unescape((tmp_path / "report.html").read_text("utf-8"))


def test_the_sentence_names_the_strategy() -> None:
    told = "No trial beat the textbook strategy `pyramid`: the strategy file holds that one."
    assert unbeaten("pyramid") == told
    assert unbeaten(None) == ""


def test_the_file_says_which_textbook_strategy_it_is(
    textbook: StudyOutcome, drawn: StudyOutcome
) -> None:
    assert textbook.best is not None and textbook.best_trial is not None
    assert textbook.best.provenance is not None
    assert textbook.best.provenance.textbook == textbook.best_trial.user_attrs[TEXTBOOK]
    assert drawn.best is not None and drawn.best.provenance is not None
    assert drawn.best.provenance.textbook is None
    assert "textbook" not in drawn.best.to_json()


def test_nothing_is_said_before_anything_else_was_measured(
    begun: StudyOutcome, tmp_path: Path
) -> None:
    assert begun.textbook is None and begun.best is not None
    assert begun.best.provenance is not None and begun.best.provenance.textbook is None
    assert "No trial beat" not in page_of(tmp_path, Run(begun.study, begun.best))
    begun.best.save(tmp_path / run_folder.STRATEGY)
    assert "textbook" not in run("show", tmp_path).stdout
    assert "textbook" not in repr(SearchResult(begun))


def test_a_trial_that_was_stopped_early_was_measured(begun: StudyOutcome) -> None:
    *_, last = trials = fake_run(total=6).study.trials
    assert unbeaten_textbook(trials) == unbeaten_textbook([*begun.study.trials, last]) is not None
    failed = create_trial(state=TrialState.FAIL, user_attrs={FAILURE: "nan"})
    assert unbeaten_textbook([*begun.study.trials, failed]) is None
    stopped = create_trial(state=TrialState.PRUNED, value=9.0)
    assert unbeaten_textbook([*begun.study.trials, stopped]) is not None


def test_show_says_so(textbook: StudyOutcome, drawn: StudyOutcome, tmp_path: Path) -> None:
    for outcome, said in ((textbook, True), (drawn, False)):
        assert outcome.best is not None
        outcome.best.save(tmp_path / run_folder.STRATEGY)
        told = " ".join(run("show", tmp_path).stdout.split())
        assert (sentence_of(textbook) in told) == said
        assert ("textbook" in told) == said


def test_the_report_says_so(textbook: StudyOutcome, drawn: StudyOutcome, tmp_path: Path) -> None:
    one, other = Run(textbook.study, textbook.best), Run(drawn.study, drawn.best)
    name = textbook.study.best_trial.user_attrs[TEXTBOOK]
    assert f"the textbook strategy `{name}`" in facts(one)["found"]
    assert "textbook" not in facts(other)["found"]
    said = f"<p class='caution' role='note'>{sentence_of(textbook)}"
    assert said in page_of(tmp_path, one)
    assert said in page_of(tmp_path, replace(one, restored=True))
    assert "No trial beat" not in page_of(tmp_path, other)


def test_a_report_of_several_runs_says_of_which(
    textbook: StudyOutcome, drawn: StudyOutcome, tmp_path: Path
) -> None:
    one, other = Run(textbook.study, textbook.best), Run(drawn.study, drawn.best)
    name = textbook.study.best_trial.user_attrs[TEXTBOOK]
    assert page_of(tmp_path, one, other).count(f"<td data-name='textbook'>{name}</td>") == 1
    assert "<td data-name='textbook'>" not in page_of(tmp_path, other, other)


def test_a_textbook_strategy_is_not_compared_with_itself(
    textbook: StudyOutcome, tmp_path: Path
) -> None:
    name = textbook.study.best_trial.user_attrs[TEXTBOOK]
    value = textbook.study.best_value
    page = page_of(tmp_path, Run(textbook.study, textbook.best, {"uniform": 1.01 * value}))
    assert f"lower divergence than {name}<" not in page
    assert "lower divergence than uniform" in page


def test_nor_with_the_baseline_that_it_is_under_another_name(tmp_path: Path) -> None:
    outcome = fake_run(total=1)  # `attention-once`, which is the baseline `attention`
    value = outcome.study.best_value
    baselines = {"attention": value, "uniform": 1.01 * value}
    page = page_of(tmp_path, Run(outcome.study, outcome.best, baselines))
    assert "lower divergence than attention<" not in page
    assert "lower divergence than uniform<" in page


def test_a_baseline_that_is_called_like_it_is_another(tmp_path: Path) -> None:
    outcome = fake_run(total=1)
    baselines = {"attention-once": 2 * outcome.study.best_value}
    page = page_of(tmp_path, Run(outcome.study, outcome.best, baselines))
    assert "lower divergence than attention-once<" in page
