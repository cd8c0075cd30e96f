"""Percentile bootstrap over samples (Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lvlm_radapt.errors import UserError

_DRAWS_AT_ONCE = 4_000_000  # bounds memory at some 64 MB


class Interval(NamedTuple):
    """low <= high, in the unit of the samples."""

    low: float
    high: float


def bootstrap_ci(per_sample: Sequence[float], *, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
    """Interval of the mean over samples at confidence `level` in (0, 1).

    The order of the samples does not matter, equal inputs give equal intervals. One sample (or equal ones)
    says nothing about spread: the interval is then that single value. CIDEr with a fixed document frequency
    is a mean over images, so its per-image scores go in here too. Raises UserError for no samples, values
    that are not finite, a bad level or fewer than one resample.
    """
    values = _checked(per_sample, level, resamples)
    values.sort()
    if values[0] == values[-1]:
        return Interval(float(values[0]), float(values[0]))
    return _between(_means(values[:, None], resamples, seed)[:, 0], level)


def paired_difference_ci(
    first: Sequence[float],
    second: Sequence[float],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Interval of mean(first - second) for two scores of the same samples in the same order.

    Samples are resampled as pairs, so what makes a sample easy for both cancels out. Raises as
    `bootstrap_ci`, and for sequences of different length.
    """
    if len(first) != len(second):
        raise UserError(f"paired scores need the same samples, got {len(first)} and {len(second)}: match the ids")
    difference = np.subtract(np.asarray(first, dtype=float), np.asarray(second, dtype=float))
    return bootstrap_ci(difference.tolist(), level=level, resamples=resamples, seed=seed)


def gain_share_ci(
    part: Sequence[float],
    whole: Sequence[float],
    base: Sequence[float],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Interval of mean(part - base) / mean(whole - base): how much of one defence's gain another has.

    Three scores of the same samples in the same order, resampled together. Raises as `bootstrap_ci`, for sequences of
    different length, and where the whole gain is not positive in every resample: a share of nothing means nothing.
    """
    if not len(part) == len(whole) == len(base):
        raise UserError(
            f"paired scores need the same samples, got {len(part)}, {len(whole)} and {len(base)}: match the ids"
        )
    own, full, none = (_checked(scores, level, resamples) for scores in (part, whole, base))
    gains = _means(np.stack([own - none, full - none], axis=1), resamples, seed)
    if gains[:, 1].min() <= 0:
        raise UserError("the whole gain is not clearly above 0, so nothing has a share of it: evaluate more samples")
    return _between(gains[:, 0] / gains[:, 1], level)


def _means(values: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    """[resamples, K] means of [n, K] scores; the K of a sample are drawn together."""
    generator = np.random.default_rng(seed)
    means = np.empty((resamples, values.shape[1]))
    block = max(1, _DRAWS_AT_ONCE // values.size)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        draws = generator.integers(0, len(values), size=(rows, len(values)))
        means[start : start + rows] = values[draws].mean(axis=1)
    return means


def _between(means: NDArray[np.float64], level: float) -> Interval:
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def _checked(per_sample: Sequence[float], level: float, resamples: int) -> NDArray[np.float64]:
    values = np.array(per_sample, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise UserError("a bootstrap interval needs a flat list of at least one score: evaluate more samples")
    if not np.isfinite(values).all():
        raise UserError("a bootstrap interval needs finite scores: look for NaN or infinity in the samples")
    if not 0 < level < 1:
        raise UserError(f"confidence level {level} is not between 0 and 1: give for example 0.95")
    if resamples < 1:
        raise UserError(f"resamples is {resamples}: give at least 1, 2000 is usual")
    return values
