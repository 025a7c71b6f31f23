"""Rank correlation of divergence and accuracy, and what a divergence picks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from vflowopt_search.evaluate.prediction import (
    DRAWS,
    Prediction,
    _accuracies,
    _around,
    _correlations,
    _multisets,
    _subsets,
    predictions,
)


def found(
    noise: float, num_strategies: int = 20, num_samples: int = 64
) -> dict[tuple[str, int], Prediction]:
    """A divergence that is the truth with noise, one without, and one that knows nothing."""
    rng = np.random.default_rng(0)
    # right to as many questions as a strategy is good; ten questions to an image
    accuracy_K = rng.permutation(np.linspace(0.1, 0.9, num_strategies))
    scores_KN = (np.linspace(0, 1, 1000)[None] < accuracy_K[:, None]).astype(float)
    accuracy_K = scores_KN.mean(1)
    exact = np.repeat(1 - accuracy_K[:, None], num_samples, axis=1)
    noisy = exact + noise * rng.standard_normal(exact.shape)
    blind = rng.random(exact.shape)
    tables = {"exact": exact, "noisy": noisy, "blind": blind}
    clusters = rng.permutation(np.arange(1000) // 10).tolist()
    rows = predictions(tables, scores_KN, clusters, against="exact", seed=0)
    return {(row.metric, row.samples): row for row in rows}


def test_a_perfect_divergence_correlates_and_picks_perfectly() -> None:
    rows = found(noise=2.0)
    assert {samples for _, samples in rows} == {16, 30, 64}
    for (metric, _), row in rows.items():
        assert -1 <= row.correlation.low <= row.correlation.high <= 1
        if metric == "exact":
            assert row.correlation.value == pytest.approx(1)
            assert row.picked.value == pytest.approx(1)
            assert row.gain.value == row.gain.low == row.gain.high == 0
        else:
            assert row.gain.value < 0


def test_more_samples_help_and_noise_hurts() -> None:
    rows = found(noise=2.0)
    values = [rows["noisy", size].correlation.value for size in (16, 30, 64)]
    assert values == sorted(values)
    assert rows["noisy", 16].picked.value < found(noise=0.2)["noisy", 16].picked.value
    assert abs(rows["blind", 64].correlation.value) < 0.5 < values[0]
    assert found(noise=0.2)["noisy", 16].correlation.value > values[0]


def test_the_interval_also_tells_how_much_the_strategies_matter() -> None:
    """With all samples there is one draw of them, but other strategies might have been there."""
    row = found(noise=2.0)["noisy", 64]
    assert row.correlation.low < row.correlation.value - 0.02
    assert row.correlation.high > row.correlation.value + 0.02
    assert row.gain.low < row.gain.value < row.gain.high


def spreads(num_questions: int, num_samples: int, *, seed: int = 0) -> tuple[float, float]:
    """Width of the intervals of correlation and pick, of an honest but noisy divergence."""
    rng = np.random.default_rng(seed)
    quality_K = np.linspace(0.4, 0.6, 20)
    scores_KN = (rng.random((20, num_questions)) < quality_K[:, None]).astype(float)
    divergence_KS = 1 - quality_K[:, None] + 0.3 * rng.standard_normal((20, num_samples))
    images = list(range(num_questions))
    rows = predictions({"one": divergence_KS}, scores_KN, images, against="one", seed=0)
    last = rows[-1]
    return (
        last.correlation.high - last.correlation.low,
        last.picked.high - last.picked.low,
    )


def test_with_all_samples_other_samples_might_have_been_there_too() -> None:
    """Drawn without replacement, all of them would be one draw, and the pick would be certain."""
    assert all(width > 0.005 for width in spreads(10_000, 64))
    assert spreads(10_000, 64)[0] > spreads(10_000, 4096)[0]


def test_few_questions_make_the_interval_of_a_certain_pick_wide() -> None:
    """Nothing but the questions is drawn there: the divergences are the same on every sample."""
    divergence_KS = np.repeat(np.array([[0.1], [0.2], [0.3]]), 16, axis=1)
    widths = []
    for number in (40, 4000):
        rng = np.random.default_rng(0)
        scores_KN = (rng.random((3, number)) < np.array([[0.5], [0.7], [0.2]])).astype(float)
        [row] = predictions({"one": divergence_KS}, scores_KN, range(number), against="one", seed=0)
        accuracy_K = scores_KN.mean(1)
        assert row.picked.value == pytest.approx(accuracy_K[0] / accuracy_K[1])
        assert row.picked.low < row.picked.value < row.picked.high
        widths.append(row.picked.high - row.picked.low)
    assert widths[0] > 3 * widths[1]  # the square root of 100, about, as far as 1 allows


def test_questions_about_one_image_are_drawn_together() -> None:
    rng = np.random.default_rng(0)
    scores_KN = np.repeat(rng.integers(0, 2, (3, 50)).astype(float), 20, axis=1)
    apart = _accuracies(scores_KN, list(range(1000)), rng).std(0)
    together = _accuracies(scores_KN, (np.arange(1000) // 20).tolist(), rng).std(0)
    assert (together > 3 * apart).all()  # the square root of 20, about
    assert _accuracies(scores_KN, [0] * 1000, rng) == pytest.approx(
        np.tile(scores_KN.mean(1), (DRAWS, 1))
    )


@given(
    value=st.floats(-1, 1),
    draws=st.lists(st.floats(-1, 1), min_size=40, max_size=60),
)
def test_an_interval_lies_about_its_value(value: float, draws: list[float]) -> None:
    found = _around(value, np.array(draws), -1, 1)
    assert -1 <= found.low <= found.high <= 1
    moved = _around(value, np.array(draws) - 0.25, -1, 1)  # a bias of the draws says nothing
    assert (moved.low, moved.high) == pytest.approx((found.low, found.high))


@pytest.mark.parametrize(("total", "size"), [(10, 1), (10, 4), (10, 25)])
def test_a_draw_with_replacement_has_its_size(total: int, size: int) -> None:
    drawn_RS = _multisets(total, size, np.random.default_rng(0))
    assert (drawn_RS.sum(1) == size).all() and (drawn_RS >= 0).all()
    assert size == 1 or drawn_RS.max() > 1
    assert drawn_RS.mean(0) == pytest.approx(size / total, abs=0.2)


@pytest.mark.parametrize(("total", "size"), [(10, 1), (10, 4), (10, 10)])
def test_a_subset_has_its_size_and_no_sample_twice(total: int, size: int) -> None:
    drawn_RS = _subsets(total, size, np.random.default_rng(0))
    assert drawn_RS.shape == (DRAWS, total)
    assert set(np.unique(drawn_RS)) <= {0.0, 1.0}
    assert (drawn_RS.sum(1) == size).all()
    assert drawn_RS.mean(0) == pytest.approx(size / total, abs=0.06)  # none is preferred


def test_as_many_samples_as_there_are() -> None:
    assert {size for _, size in found(1.0, num_samples=40)} == {16, 30, 40}
    assert {size for _, size in found(1.0, num_samples=16)} == {16}


@given(
    pairs=st.lists(
        st.tuples(st.integers(-5, 5).map(float), st.integers(-5, 5).map(float)),
        min_size=3,
        max_size=12,
    )
)
def test_the_correlation_is_spearmans(pairs: list[tuple[float, float]]) -> None:
    one, two = np.array(pairs).T
    mine = float(_correlations(one[None], two[None])[0])
    if len({*one}) == 1 or len({*two}) == 1:
        assert mine == 0
    else:
        assert mine == pytest.approx(-float(spearmanr(one, two).statistic))
