"""The arithmetic of the comparison of the search's choices; its studies run without a model."""

from __future__ import annotations

from math import inf
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from optuna.trial import FixedTrial, FrozenTrial, TrialState, create_trial

from tests.bench.choices import (
    append_row,
    best_at,
    cost,
    duel,
    fields,
    race_of,
    read_rows,
    run_trials,
    spread,
    table,
    within,
)
from tests.bench.configurations import (
    CONFIGURATIONS,
    DEFAULT,
    Configuration,
    as_drawn,
    derive_last,
)
from tests.fake_study import FACTS, SPACE, FakeObjective, fake_run, fake_space
from vflowopt_search.budget import close_budget, mean_retained
from vflowopt_search.search_space import SearchSpace
from vflowopt_search.strategy import Stage
from vflowopt_search.trials import PER_SAMPLE, SAMPLES_SEEN, is_full

DEPTH = 28
SHARE = st.floats(min_value=0.01, max_value=1)
LATER = st.lists(st.integers(1, DEPTH - 1), max_size=3, unique=True).map(sorted)

# --- the derived ratio


def staged(layers: list[int], ratios: list[float]) -> list[Stage]:
    return [Stage(layer=k, keep_ratio=r) for k, r in zip(layers, ratios, strict=True)]


def test_derived_ratio_by_hand() -> None:
    # At most 0.4 of the tokens fit into the first 2 of 8 layers; 0.4 of that is 0.16.
    assert derive_last([0, 2, 4], [0.4, 0.75], 8, 0.1) == pytest.approx([0.16, 0.75, 0.5])
    assert derive_last([0], [], 8, 0.1) == pytest.approx([0.1])
    assert derive_last([0, 4], [0.25], 8, 0.1) == pytest.approx([0.05, 1.0])
    assert derive_last([0, 2, 4], [1.0, 0.75], 8, 0.1) is None


@given(LATER, st.data(), SHARE)
def test_derived_ratio_meets_the_budget_where_it_can(
    later: list[int], data: st.DataObject, retain: float
) -> None:
    layers = [0, *later]
    drawn = [data.draw(SHARE) for _ in later]
    ratios = derive_last(layers, drawn, DEPTH, retain)
    if ratios is None:
        # The free ratios alone have spent it: even a last ratio of next to nothing is too much.
        least = [drawn[0] * min(1, retain * DEPTH / layers[1]), *drawn[1:], 1e-12]
        assert mean_retained(staged(layers, least), DEPTH) >= retain - 1e-9
        return
    kept = mean_retained(staged(layers, ratios), DEPTH)
    assert kept <= retain + 1e-9
    assert ratios[-1] == 1 or kept == pytest.approx(retain, abs=1e-9)


@given(LATER, st.data(), SHARE)
def test_every_scaled_strategy_can_be_drawn(
    later: list[int], data: st.DataObject, retain: float
) -> None:
    layers = [0, *later]
    scaled = close_budget(layers, [data.draw(SHARE) for _ in later], DEPTH, retain)
    assume(all(one < 1 for one in scaled))
    drawn = as_drawn(staged(layers, scaled), DEPTH, retain)
    assert derive_last(layers, drawn, DEPTH, retain) == pytest.approx(scaled)


def test_derived_textbook_is_the_same() -> None:
    shipped = SearchSpace.load("vflowopt")
    scaled, derived = (Configuration(derived=d).bind(shipped, FACTS, 0.1) for d in (False, True))
    assert scaled.textbook().keys() == derived.textbook().keys()
    for name, point in derived.textbook().items():
        theirs = scaled.suggest(FixedTrial(dict(scaled.textbook()[name])), 0.1)
        ours = derived.suggest(FixedTrial(dict(point)), 0.1)
        assert ours.model_copy(update={"stages": theirs.stages, "budget": theirs.budget}) == theirs
        assert [s.layer for s in ours.stages] == [s.layer for s in theirs.stages]
        ratios = [s.keep_ratio for s in theirs.stages]
        assert [s.keep_ratio for s in ours.stages] == pytest.approx(ratios)


# --- the curve, cut at a cost


def trial(value: float, seen: int, of: int = 8) -> FrozenTrial:
    per_sample = [value] * seen + [None] * (of - seen)
    return create_trial(value=value, user_attrs={SAMPLES_SEEN: seen, PER_SAMPLE: per_sample})


INFEASIBLE = create_trial(state=TrialState.PRUNED)
TRIALS = [trial(0.5, 8), trial(0.1, 4), INFEASIBLE, trial(0.4, 8), trial(0.3, 8)]


@pytest.mark.parametrize(
    ("evaluations", "best", "paid"),
    [
        (7, inf, 0),
        (8, 0.5, 1),
        (19, 0.5, 3),
        (20, 0.4, 4),
        (27, 0.4, 4),
        (28, 0.3, 5),
        (99, 0.3, 5),
    ],
)
def test_best_at_a_cost_is_fully_measured_and_paid(
    evaluations: int, best: float, paid: int
) -> None:
    assert best_at(TRIALS, evaluations) == best
    assert within(TRIALS, evaluations) == TRIALS[:paid]


@pytest.mark.parametrize("name", ["default", "random", "tpe-optuna", "derived", "random-alone"])
def test_study_ends_when_its_cost_is_spent(name: str) -> None:
    configuration, objective = CONFIGURATIONS[name], FakeObjective()
    space = configuration.bind(SPACE, FACTS, 0.25)
    race, sampler = race_of(configuration, objective, space, 0.25, 3)
    trials = run_trials(race, 150, racing=configuration.racing)
    assert 150 <= cost(trials) == objective.measured < 150 + objective.num_samples
    assert all(is_full(trial) for trial in trials if not configuration.racing)
    assert sampler.seconds > 0


def test_default_is_the_search_of_the_product() -> None:
    race, _ = race_of(CONFIGURATIONS[DEFAULT], FakeObjective(), fake_space(), 0.25, 0)
    ours = run_trials(race, 150, racing=True)
    theirs = fake_run(total=len(ours)).study.trials
    assert [(t.params, t.value) for t in ours] == [(t.params, t.value) for t in theirs]


# --- rows and their table

COSTS = [100, 200]


def row(name: str, seed: int, best: float) -> dict[str, str | float]:
    same = dict.fromkeys(fields(COSTS), best)
    return {**same, "configuration": name, "seed": seed, "trials": 9, "sampler_seconds": 1.5}


def test_table_counts_wins_by_seed(tmp_path: Path) -> None:
    out = tmp_path / "choices.csv"
    for seed in range(10):
        append_row(out, row(DEFAULT, seed, 0.2 + seed / 100))
        append_row(out, row("random", seed, 0.1 + seed / 50))
    append_row(out, row("no-racing", 4, 0.05))
    rows = read_rows(out, fields(COSTS))
    assert len(rows) == 21
    lines = table(rows, COSTS).splitlines()
    assert lines[2].startswith("| default | 10 | 0.2450 (0.2225 to 0.2675) |  | 0.2450")
    assert "| 0.1900 (0.1450 to 0.2350) | 10/10 (0.002) |" in lines[3]
    assert "| no-racing | 1 | 0.0500 | 1/1 (1.000) |" in lines[4]
    assert len({line.count("|") for line in lines}) == 1


def test_file_of_other_costs_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "choices.csv"
    assert read_rows(out, fields(COSTS)) == []
    append_row(out, row(DEFAULT, 1, 0.2))
    with pytest.raises(SystemExit, match=r"has columns .*best_100.* name another"):
        read_rows(out, fields([100]))


def test_equal_studies_have_no_winner() -> None:
    assert duel({1: 0.2, 2: 0.3}, {1: 0.2, 2: 0.3}) == "0/2 (same)"
    assert duel({1: 0.1, 2: 0.3}, {2: 0.2, 3: 0.1}) == "0/1 (1.000)"
    assert spread([0.25]) == "0.2500"
