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
    _correlations,
    _subsets,
    predictions,
)


def found(
    noise: float, num_strategies: int = 20, num_samples: int = 64
) -> dict[tuple[str, int], Prediction]:
    """A divergence that is the truth with noise, one without, and one that knows nothing."""
    rng = np.random.default_rng(0)
    accuracy_K = rng.random(num_strategies)
    exact = np.repeat(1 - accuracy_K[:, None], num_samples, axis=1)
    noisy = exact + noise * rng.standard_normal(exact.shape)
    blind = rng.random(exact.shape)
    tables = {"exact": exact, "noisy": noisy, "blind": blind}
    rows = predictions(tables, accuracy_K, against="exact", seed=0)
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
