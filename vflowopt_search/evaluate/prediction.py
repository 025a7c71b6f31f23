"""How well a divergence on few samples predicts accuracy: rank correlation, and what it picks.

Shape suffixes: K = strategies, S = calibration samples, N = questions, C = images, R = draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from vflowopt_search.evaluate.statistics import Floats, Interval, bounds, cluster_sums

SIZES = (16, 30, 64, 128, 256)
DRAWS = 1000
_LEAST = 1e-12  # an accuracy below counts as this much, for there is a ratio to it


@dataclass(frozen=True)
class Prediction:
    """What one divergence on so many calibration samples is worth.

    Attributes:
        metric: name of the divergence.
        samples: how many calibration samples it is the mean of.
        correlation: Spearman's, sign turned, of divergence and accuracy over the strategies.
        gain: that correlation less the one of the metric it is compared with, on the same draws.
        picked: accuracy of the strategy with the lowest divergence, over the best of all.

    Values are means over subsets of the samples that were measured. Intervals are bootstrapped:
    samples, strategies and questions (images with all their questions) are drawn with
    replacement; of `picked` the strategies stay. A draw has the noise of its samples twice, once
    from drawing and once from before, so that it lies lower on average; the interval is the
    spread of the draws around the value.
    """

    metric: str
    samples: int
    correlation: Interval
    gain: Interval
    picked: Interval


def predictions(
    divergences: Mapping[str, Floats],
    scores_KN: Floats,
    clusters: Sequence[int],
    *,
    against: str,
    seed: int,
) -> list[Prediction]:
    """Each divergence at 16, 30, 64, 128, 256 samples, as far as there are so many, and at all.

    Args:
        divergences: metric to divergence of each strategy on each calibration sample, (K, S).
        scores_KN: of each strategy's answer to each question.
        clusters: number of the image of each question.
        against: the metric that the others are compared with.
        seed: of all draws.
    """
    num_samples = next(iter(divergences.values())).shape[1]
    found = []
    for size in [*(size for size in SIZES if size < num_samples), num_samples]:
        rng = np.random.default_rng([seed, size])
        drawn = _Drawn.of(num_samples, size, scores_KN, clusters, rng)
        rows = {name: drawn.correlations(each_KS) for name, each_KS in divergences.items()}
        for name, (plain_R, again_R) in rows.items():
            plain_of_other_R, again_of_other_R = rows[against]
            gains_R = again_R - again_of_other_R
            gain = _around((plain_R - plain_of_other_R).mean(), gains_R, -2, 2)
            correlation = _around(plain_R.mean(), again_R, -1, 1)
            picked = drawn.picked(divergences[name])
            found.append(Prediction(name, size, correlation, gain, picked))
    return found


@dataclass(frozen=True)
class _Drawn:
    """What was drawn for one number of samples.

    Attributes:
        size: that number.
        accuracy_K: of each strategy on all questions.
        subset_RS: how often each sample is in a subset: once, or not.
        again_RS: how often it is drawn with replacement.
        again_RK: which strategies are drawn.
        again_accuracy_RK: accuracy of each strategy on the questions that are drawn.
    """

    size: int
    accuracy_K: Floats
    subset_RS: Floats
    again_RS: Floats
    again_RK: NDArray[np.int64]
    again_accuracy_RK: Floats

    @classmethod
    def of(
        cls,
        num_samples: int,
        size: int,
        scores_KN: Floats,
        clusters: Sequence[int],
        rng: np.random.Generator,
    ) -> _Drawn:
        """Draw everything."""
        num_strategies = len(scores_KN)
        return cls(
            size=size,
            accuracy_K=scores_KN.mean(1),
            subset_RS=_subsets(num_samples, size, rng),
            again_RK=rng.integers(0, num_strategies, (DRAWS, num_strategies)),
            again_RS=_multisets(num_samples, size, rng),
            again_accuracy_RK=_accuracies(scores_KN, clusters, rng),
        )

    def correlations(self, divergence_KS: Floats) -> tuple[Floats, Floats]:
        """Of each subset; and of each draw of samples, strategies and questions, (R,) both."""
        plain_RK = self.subset_RS @ divergence_KS.T
        again_RK = np.take_along_axis(self.again_RS @ divergence_KS.T, self.again_RK, 1)
        accuracy_RK = np.take_along_axis(self.again_accuracy_RK, self.again_RK, 1)
        return (
            _correlations(plain_RK, self.accuracy_K[None]),
            _correlations(again_RK, accuracy_RK),
        )

    def picked(self, divergence_KS: Floats) -> Interval:
        """Accuracy of what is picked over that of the strategy that is best on all questions."""
        best = int(self.accuracy_K.argmax())
        plain_R = self.accuracy_K[(self.subset_RS @ divergence_KS.T).argmin(1)]
        chosen_R1 = (self.again_RS @ divergence_KS.T).argmin(1)[:, None]
        again_R = np.take_along_axis(self.again_accuracy_RK, chosen_R1, 1)[:, 0]
        again_R = again_R / np.maximum(self.again_accuracy_RK[:, best], _LEAST)
        return _around(plain_R.mean() / max(self.accuracy_K[best], _LEAST), again_R, 0, 1)


def _subsets(total: int, size: int, rng: np.random.Generator) -> Floats:
    """`DRAWS` subsets without repetition, as 0 and 1, (R, S)."""
    order_RS = rng.random((DRAWS, total)).argsort(1)
    return (order_RS < size).astype(np.float64)


def _multisets(total: int, size: int, rng: np.random.Generator) -> Floats:
    """`DRAWS` draws with replacement, as how often each was drawn, (R, S)."""
    return rng.multinomial(size, np.full(total, 1 / total), DRAWS).astype(np.float64)


def _accuracies(scores_KN: Floats, clusters: Sequence[int], rng: np.random.Generator) -> Floats:
    """Accuracy of each strategy on `DRAWS` draws of the images, each with its questions, (R, K)."""
    counted_XN = np.concatenate([scores_KN, np.ones((1, scores_KN.shape[1]))])
    sums_CX = cluster_sums(counted_XN, clusters)
    sums_RX = _multisets(len(sums_CX), len(sums_CX), rng) @ sums_CX
    accuracy_RK: Floats = sums_RX[:, :-1] / sums_RX[:, -1:]
    return accuracy_RK


def _around(value: float, draws: Floats, least: float, most: float) -> Interval:
    """The spread of some draws around a value, as far as such a value goes."""
    low, high = bounds(np.clip(draws - draws.mean() + value, least, most))
    return Interval(float(value), low, high)


def _correlations(divergence_RK: Floats, accuracy_RK: Floats) -> Floats:
    """Spearman's correlation of each row, sign turned; 0 where one side does not vary."""
    one_RK = rankdata(-divergence_RK, axis=1)
    two_RK = rankdata(np.broadcast_to(accuracy_RK, divergence_RK.shape), axis=1)
    one_RK = one_RK - one_RK.mean(1, keepdims=True)
    two_RK = two_RK - two_RK.mean(1, keepdims=True)
    scale_R = np.sqrt((one_RK**2).sum(1) * (two_RK**2).sum(1))
    shared_R: Floats = (one_RK * two_RK).sum(1)
    correlation_R = np.zeros_like(shared_R)
    np.divide(shared_R, scale_R, out=correlation_R, where=scale_R > 0)
    return correlation_R
