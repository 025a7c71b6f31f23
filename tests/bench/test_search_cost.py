"""The phases add up, and the columns of the search's table say what they say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench import subjects
from tests.bench.phases import (
    DECODER,
    FEEDING,
    IMPORTANCE,
    MAPS,
    REST,
    ROWS,
    SAMPLER,
    Phases,
    median_of,
    timed,
)
from tests.bench.published_loop import Proposal
from tests.bench.search_cost import NEVER, Curve, Figures, Point, medians, our_curve, print_searches
from tests.bench.subjects import Subject
from tests.bench.trial_cost import (
    TrialCosts,
    loop_of,
    objective_of,
    print_trials,
    same_strategy,
    trial_costs,
)

PROPOSALS = [Proposal(1.5, 0.4, 4.0, (0.5, 0.5, 0.5)), Proposal(1.0, 0.1, 6.0, (0.2, 0.9, 0.4))]


@pytest.fixture(scope="module")
def subject() -> Subject:
    return subjects.testbed(4)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.integers(0, 9)), max_size=20))
def test_nested_phases_add_up_to_the_time_that_passed(
    turns: list[tuple[str, bool, int]],
) -> None:
    now, depth = [0], 0
    phases = Phases(lambda: float(now[0]))
    with phases.during("all"):
        for name, begins, passing in turns:
            now[0] += passing
            if begins or not depth:
                phases.begin(name)
                depth += 1
            else:
                phases.end()
                depth -= 1
        for _ in range(depth):
            phases.end()
    assert sum(phases.take().values()) == now[0]
    assert phases.take() == {}


def test_what_is_nested_counts_for_itself_alone() -> None:
    ticks = iter([0.0, 1.0, 3.0, 7.0])
    phases = Phases(lambda: next(ticks))
    with phases.during("outer"), phases.during("inner"):
        pass
    assert phases.take() == {"outer": 1.0 + 4.0, "inner": 2.0}


def test_medians_take_a_phase_that_did_not_happen_as_nothing() -> None:
    assert median_of([{"a": 1.0}, {"a": 2.0, "b": 9.0}, {"a": 4.0, "b": 3.0}]) == {
        "b": 3.0,
        "a": 2.0,
    }


def test_a_trial_of_ours_has_all_phases_and_pays_the_maps_once(subject: Subject) -> None:
    objective, phases = objective_of(subject), Phases()
    strategy = same_strategy(loop_of(subject, 0.1), PROPOSALS[0], subject)
    seconds = []
    for _ in range(2):
        with timed(objective, phases) as measuring:
            values = measuring.measure(strategy, range(4))
        seconds.append(phases.take())
    assert set(seconds[0]) == {MAPS, ROWS, FEEDING, IMPORTANCE, DECODER, REST}
    assert set(seconds[1]) == set(seconds[0]) - {MAPS}
    assert min(seconds[1].values()) > 0
    assert values == objective.measure(strategy, range(4))
    assert objective.adapter.backbone._forward_hooks == {}
    assert "feed_rows" not in vars(objective.source)


def test_full_trials_of_both_by_phase(subject: Subject, capsys: pytest.CaptureFixture[str]) -> None:
    costs = trial_costs(loop_of(subject, 0.1), subject, PROPOSALS)
    assert {"unpruned model", "vision encoder", "decoder"} <= set(costs.theirs[0])
    assert MAPS not in costs.ours[0]
    assert costs.ratio > 1
    print_trials(costs, subject.name, 0.1)
    printed = capsys.readouterr().out
    assert "| published: unpruned model |" in printed and f"| ours: {DECODER} |" in printed


def test_the_ratio_is_the_median_over_pairs() -> None:
    theirs, ours = [{"a": 3.0, "b": 3.0}, {"a": 8.0}, {"a": 9.0}], [{"c": 1.0}] * 3
    assert TrialCosts(1, 0.0, theirs, ours).ratio == 8.0


def test_our_search_counts_its_evaluations_and_its_sampler(subject: Subject) -> None:
    curve = our_curve(subject, 0.1, 3, 0)
    assert [point.evaluations for point in curve.points] == [4, 8, 12]
    assert [point.best for point in curve.points] == sorted(
        (point.best for point in curve.points), reverse=True
    )
    assert curve.per_trial[SAMPLER] > 0
    assert MAPS not in curve.per_trial
    assert sum(curve.per_trial.values()) * 3 < curve.last.seconds


THEIRS = Curve([Point(10.0, 32, 0.5), Point(20.0, 64, 0.3)], {"a": 2.0})
OURS = Curve([Point(1.0, 32, 0.4), Point(2.0, 40, 0.3), Point(15.0, 70, 0.2)], {"b": 1.0})


def test_equal_cost_is_told_in_seconds_and_in_evaluations() -> None:
    figures = Figures.of("words", 1, THEIRS, OURS)
    assert (figures.s_ratio, figures.evaluations_ratio) == (10.0, 64 / 40)
    assert (figures.best_in_its_s, figures.best_in_its_evaluations) == (0.2, 0.3)


def test_what_is_never_reached_is_worth_nothing() -> None:
    figures = Figures.of("words", 1, OURS, THEIRS)
    assert (figures.s_ratio, figures.evaluations_ratio) == (0.0, 0.0)
    assert (figures.our_s, figures.our_evaluations) == (NEVER, NEVER)
    assert THEIRS.best_within(seconds=9.0) == NEVER


def test_medians_are_over_all_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    found = [
        Figures.of("words", 1, THEIRS, OURS),
        Figures.of("words", 2, OURS, THEIRS),
        Figures.of("words", 3, THEIRS, OURS),
    ]
    assert medians(found)["s_ratio"] == 10.0
    print_searches(found)
    lines = capsys.readouterr().out.splitlines()
    [middle] = [line for line in lines if line.startswith("| **median**")]
    assert middle.split(" | ")[4] == "10"
    assert {line.count("|") for line in lines[2:8]} == {middle.count("|")}
