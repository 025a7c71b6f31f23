"""What `search` gives back: it saves, and it is told in a line."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fake_study import FakeObjective, fake_run
from vflowopt_search.errors import DivergenceError, StudyError
from vflowopt_search.outcome import StudyOutcome
from vflowopt_search.result import SearchResult
from vflowopt_search.strategy import Strategy
from vflowopt_search.trials import outcome_of


class Diverging(FakeObjective):
    """Measures nothing."""

    def measure(self, strategy: Strategy, indices: object) -> list[float]:
        raise DivergenceError("nan")


def held_out(outcome: StudyOutcome, divergence: float) -> StudyOutcome:
    """The outcome with its best measured on other samples."""
    assert outcome.best is not None and outcome.best.provenance is not None
    origin = outcome.best.provenance
    assert origin.objective is not None
    objective = origin.objective.model_copy(update={"held_out": divergence})
    update = {"provenance": origin.model_copy(update={"objective": objective})}
    return replace(outcome, best=outcome.best.model_copy(update=update))


def test_a_search_result_saves_its_best_or_says_that_there_is_none(tmp_path: Path) -> None:
    result = SearchResult(fake_run(total=1))
    result.save(tmp_path / "strategy.json")
    assert Strategy.load(tmp_path / "strategy.json") == result.best
    assert json.loads((tmp_path / "strategy.json").read_text())["name"] == "fake"
    nothing = SearchResult(fake_run(Diverging(), total=1))
    with pytest.raises(StudyError, match="no strategy that was measured on every"):
        nothing.save(tmp_path / "none.json")


def test_a_result_is_told_in_a_line(tmp_path: Path) -> None:
    outcome = fake_run(total=30)
    assert outcome.divergence is not None
    result = SearchResult(held_out(outcome, 0.25), "study.journal")
    ended = Counter(map(outcome_of, outcome.study.trials))
    trials = f"30 trials ({ended['complete']} complete, {ended['stopped']} stopped)"
    found = f"divergence {outcome.divergence:.4g}, held out 0.25"
    told = f"study 'fake' in study.journal: {trials}, retain 0.25, {found}, not saved yet"
    assert repr(result) == str(result) == f"SearchResult({told})"
    result.save(tmp_path / "strategy.json")
    assert repr(result).endswith(f"held out 0.25, saved as {tmp_path / 'strategy.json'})")


def test_a_result_says_what_it_lacks() -> None:
    outcome = fake_run(total=6)
    assert outcome.best is not None and outcome.best.provenance is not None
    name = outcome.best.provenance.textbook
    told = repr(SearchResult(replace(outcome, interrupted=True)))
    assert told.startswith("SearchResult(study 'fake' in memory: 6 trials (") and "held" not in told
    assert f", the textbook strategy `{name}`, interrupted, not saved yet)" in told
    nothing = repr(SearchResult(fake_run(Diverging(), total=2)))
    assert "2 trials (2 failed), retain 0.25, nothing found)" in nothing


def test_a_search_that_was_interrupted_at_once_has_no_trials() -> None:
    class Stopped(FakeObjective):
        def measure(self, strategy: Strategy, indices: object) -> list[float]:
            raise KeyboardInterrupt

    told = repr(SearchResult(fake_run(Stopped(), total=2)))
    assert told.endswith(" in memory: no trials, retain 0.25, nothing found, interrupted)")


def test_one_trial_is_one() -> None:
    assert ": 1 trial (1 complete), " in repr(SearchResult(fake_run(total=1)))


def test_no_password_is_told() -> None:
    told = repr(SearchResult(fake_run(total=1), "postgresql://me:secret@host/db"))
    assert "in postgresql://me:***@host/db:" in told
