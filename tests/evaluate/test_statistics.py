"""Intervals and tests: cases with a known answer, and laws."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vflowopt_search.evaluate.statistics import (
    RESAMPLES,
    mcnemar,
    paired_test,
    ratio_interval,
    sign_flips,
)

scores = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=20)


@pytest.mark.parametrize(
    ("gained", "lost", "p_value"),
    [(0, 0, 1.0), (1, 1, 1.0), (0, 1, 1.0), (0, 5, 2 / 32), (1, 7, 2 * (1 + 8) / 256)],
)
def test_mcnemar_by_hand(gained: int, lost: int, p_value: float) -> None:
    assert mcnemar(gained, lost) == pytest.approx(p_value)
    assert mcnemar(lost, gained) == mcnemar(gained, lost)


@given(gained=st.integers(0, 60), lost=st.integers(0, 60))
def test_mcnemar_is_twice_the_smaller_tail_of_a_fair_coin(gained: int, lost: int) -> None:
    total, fewer = gained + lost, min(gained, lost)
    tail = sum(comb(total, k) for k in range(fewer + 1))
    assert mcnemar(gained, lost) == pytest.approx(min(1.0, 2 * tail / 2**total), rel=1e-12)


def test_sign_flips_agree_with_counting_all_signs() -> None:
    gaps = np.array([1.0, 1.0, 1.0, 1.0, 1.0, -1.0, 0.0])
    # of 64 signs of six, the sum is at least 4 away from 0 in 2 * (1 + 6)
    exact = 2 * (comb(6, 0) + comb(6, 1)) / 64
    assert sign_flips(gaps, seed=0) == pytest.approx(exact, abs=0.02)
    assert sign_flips(np.zeros(5), seed=0) == 1
    assert sign_flips(np.full(40, 0.5), seed=0) == 1 / (RESAMPLES + 1)


def test_the_test_is_mcnemars_for_right_and_wrong_of_single_images() -> None:
    whole, pruned = [1.0] * 6 + [0.0], [0.0] * 5 + [1.0, 0.0]
    test = paired_test(whole, pruned, range(7), seed=0)
    assert test.name == "McNemar, exact"
    assert test.p_value == pytest.approx(2 / 32)
    assert paired_test(whole, [0.5, *pruned[1:]], range(7), seed=0).name == "sign flips"


def test_samples_of_one_image_count_once() -> None:
    """All of the difference is on one image: that is no evidence, however many its samples."""
    whole, pruned = [1.0] * 40, [0.0] * 20 + [1.0] * 20
    clusters = [0] * 20 + list(range(1, 21))
    assert paired_test(whole, pruned, clusters, seed=0).p_value == 1
    assert paired_test(whole, pruned, range(40), seed=0).p_value < 1e-4
    lone = ratio_interval(whole, pruned, range(40), seed=0)
    shared = ratio_interval(whole, pruned, clusters, seed=0)
    assert lone is not None and shared is not None
    assert lone.value == shared.value == 0.5
    assert shared.high - shared.low > 1.5 * (lone.high - lone.low)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(30):
        whole = (rng.random(200) < 0.8).astype(float)
        pruned = whole * (rng.random(200) < 0.9)
        interval = ratio_interval(whole.tolist(), pruned.tolist(), range(200), seed)
        assert interval is not None
        covered += interval.low <= 0.9 <= interval.high
    assert 26 <= covered <= 30


def test_nothing_is_kept_of_nothing() -> None:
    assert ratio_interval([0.0, 0.0], [0.0, 1.0], range(2), seed=0) is None


@settings(max_examples=20)
@given(pairs=scores)
def test_a_strategy_that_changes_nothing_keeps_everything(
    pairs: list[tuple[float, float]],
) -> None:
    whole = [one for one, _ in pairs]
    interval = ratio_interval(whole, whole, range(len(whole)), seed=0)
    assert paired_test(whole, whole, range(len(whole)), seed=0).p_value == 1
    assert (interval is None) == (sum(whole) == 0)
    if interval is not None:
        assert (interval.low, interval.value, interval.high) == pytest.approx((1, 1, 1))


@settings(max_examples=20)
@given(pairs=scores)
def test_the_value_lies_in_its_interval_and_the_seed_decides_it(
    pairs: list[tuple[float, float]],
) -> None:
    whole, pruned = [a + 0.1 for a, _ in pairs], [b for _, b in pairs]
    interval = ratio_interval(whole, pruned, range(len(whole)), seed=3)
    assert interval is not None
    assert interval == ratio_interval(whole, pruned, range(len(whole)), seed=3)
    assert interval.value == pytest.approx(sum(pruned) / sum(whole))
    assert interval.low <= interval.high
    assert 0 < paired_test(whole, pruned, range(len(whole)), seed=3).p_value <= 1
