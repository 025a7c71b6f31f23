"""How sure a comparison on the same samples is: bootstrap, paired tests, rank correlation.

Samples that show the same images are not independent: images are drawn, each with all its
samples.

Shape suffixes: N = samples, C = clusters (images), R = resamples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
LEVEL = 0.95
AT_ONCE = 2**22  # random numbers held at a time

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedTest:
    """Whether two scores on the same samples differ by more than chance would make them.

    Attributes:
        name: `McNemar, exact` or `sign flips`.
        p_value: two-sided.
    """

    name: str
    p_value: float


def ratio_interval(
    whole: Sequence[float], pruned: Sequence[float], clusters: Sequence[int], seed: int
) -> Interval | None:
    """Mean of `pruned` over mean of `whole`, with its interval; None where the latter is 0."""
    sums_CX = cluster_sums(np.array([whole, pruned], dtype=np.float64), clusters)
    total = sums_CX.sum(0)
    if total[0] == 0:
        return None
    # not scipy's bootstrap, which has no interval as soon as one resample has nothing right in it
    drawn_RX = np.concatenate(
        [counts_RC @ sums_CX for counts_RC in _draws(len(sums_CX), np.random.default_rng(seed))]
    )
    defined = drawn_RX[:, 0] > 0
    low, high = bounds(drawn_RX[defined, 1] / drawn_RX[defined, 0])
    return Interval(float(total[1] / total[0]), low, high)


def paired_test(
    whole: Sequence[float], pruned: Sequence[float], clusters: Sequence[int], seed: int
) -> PairedTest:
    """McNemar's exact test for right or wrong, one sample to an image; sign flips otherwise."""
    gaps_N = np.array(pruned, dtype=np.float64) - np.array(whole, dtype=np.float64)
    one_each = len(set(clusters)) == len(clusters)
    if one_each and {*whole, *pruned} <= {0.0, 1.0}:
        return PairedTest(
            "McNemar, exact", mcnemar(int((gaps_N > 0).sum()), int((gaps_N < 0).sum()))
        )
    gaps_C = cluster_sums(gaps_N[None], clusters)[:, 0]
    return PairedTest("sign flips", sign_flips(gaps_C, seed))


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided binomial probability of a split at least as uneven as this one, under chance."""
    from scipy.stats import binomtest  # takes a second; most evaluations flip signs

    return float(binomtest(gained, gained + lost).pvalue) if gained or lost else 1.0


def sign_flips(gaps_C: Floats, seed: int) -> float:
    """Share of random signs for which the sum is at least as far from 0; the real signs count."""
    # not scipy's permutation_test, whose two-sided p is twice the smaller tail instead
    moved_C = gaps_C[gaps_C != 0]
    if len(moved_C) == 0:
        return 1.0
    observed, rng, extreme = abs(moved_C.sum()), np.random.default_rng(seed), 0
    for size in _portions(len(moved_C)):
        signs_RC = rng.integers(0, 2, (size, len(moved_C))) * 2 - 1
        # sums of the same numbers in another order differ in their last bits
        extreme += int((np.abs(signs_RC @ moved_C) >= observed * (1 - 1e-12)).sum())
    return (extreme + 1) / (RESAMPLES + 1)


def bounds(values: Floats) -> tuple[float, float]:
    """The middle 95 % of some values."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def cluster_sums(values_XN: Floats, clusters: Sequence[int]) -> Floats:
    """Sums over the samples of each cluster, (C, X)."""
    _, place_N = np.unique(np.asarray(clusters), return_inverse=True)
    sums_CX = np.zeros((place_N.max() + 1, len(values_XN)))
    np.add.at(sums_CX, place_N, values_XN.T)
    return sums_CX


def _draws(num_clusters: int, rng: np.random.Generator) -> Iterator[Floats]:
    """How often each cluster is drawn in each of `RESAMPLES` resamples, in portions (R, C)."""
    even = np.full(num_clusters, 1 / num_clusters)
    for size in _portions(num_clusters):
        yield rng.multinomial(num_clusters, even, size=size).astype(np.float64)


def _portions(width: int) -> list[int]:
    """`RESAMPLES` in portions of about `AT_ONCE` numbers of this width."""
    size = max(1, AT_ONCE // max(1, width))
    return [min(size, RESAMPLES - start) for start in range(0, RESAMPLES, size)]
