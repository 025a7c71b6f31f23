"""How well a divergence on few samples predicts accuracy: rank correlation, and what it picks.

Shape suffixes: K = strategies, S = calibration samples, R = draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from vflowopt_search.evaluate.statistics import Floats, Interval, bounds

SIZES = (16, 30, 64, 128, 256)
DRAWS = 1000


@dataclass(frozen=True)
class Prediction:
    """What one divergence on so many calibration samples is worth.

    Attributes:
        metric: name of the divergence.
        samples: how many calibration samples it is the mean of.
        correlation: Spearman's, sign turned, of divergence and accuracy over the strategies: the
            mean over draws of samples; its interval is over draws of samples and strategies.
        gain: that correlation less the one of the metric it is compared with, on the same draws.
        picked: accuracy of the strategy with the lowest divergence, over the best of all; mean
            and interval over draws of samples.
    """

    metric: str
    samples: int
    correlation: Interval
    gain: Interval
    picked: Interval


def predictions(
    divergences: Mapping[str, Floats], accuracy_K: Floats, *, against: str, seed: int
) -> list[Prediction]:
    """Each divergence at 16, 30, 64, 128, 256 samples, as far as there are so many, and at all.

    Args:
        divergences: metric to divergence of each strategy on each calibration sample, (K, S).
        accuracy_K: of each strategy.
        against: the metric that the others are compared with.
        seed: of all draws.
    """
    num_strategies, num_samples = next(iter(divergences.values())).shape
    found = []
    for size in [*(size for size in SIZES if size < num_samples), num_samples]:
        rng = np.random.default_rng([seed, size])
        drawn_RS = _subsets(num_samples, size, rng)
        again_RK = rng.integers(0, num_strategies, (DRAWS, num_strategies))
        means = {name: drawn_RS @ each.T / size for name, each in divergences.items()}
        plain = {name: _correlations(mean_RK, accuracy_K[None]) for name, mean_RK in means.items()}
        varied = {
            name: _correlations(np.take_along_axis(mean_RK, again_RK, 1), accuracy_K[again_RK])
            for name, mean_RK in means.items()
        }
        for name, mean_RK in means.items():
            picked_R = accuracy_K[mean_RK.argmin(1)] / max(accuracy_K.max(), 1e-12)
            gain = Interval(
                float((plain[name] - plain[against]).mean()),
                *bounds(varied[name] - varied[against]),
            )
            correlation = Interval(float(plain[name].mean()), *bounds(varied[name]))
            picked = Interval(float(picked_R.mean()), *bounds(picked_R))
            found.append(Prediction(name, size, correlation, gain, picked))
    return found


def _subsets(total: int, size: int, rng: np.random.Generator) -> Floats:
    """`DRAWS` subsets without repetition, as 0 and 1, (R, S)."""
    order_RS = rng.random((DRAWS, total)).argsort(1)
    return (order_RS < size).astype(np.float64)


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
