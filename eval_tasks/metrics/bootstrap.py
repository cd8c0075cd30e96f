"""Percentile bootstrap over images (Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13).

Several samples may share an image, as the questions about it do. What an image makes easy or hard, it makes so for all
of them, so images are what is drawn, each with all its samples (Davison and Hinkley, Bootstrap Methods, chapter 3.8).
The estimate stays the mean over samples: in a draw, the sum over all samples of the images drawn, over their number.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lvlm_radapt.utils.errors import UserError

DRAWS_AT_ONCE = 4_000_000  # bounds memory at some 64 MB


class Interval(NamedTuple):
    """low <= high, in the unit of the samples."""

    low: float
    high: float


Images = Sequence[Hashable]
"""The image of each sample, in any form in which equal ones are one image."""


def bootstrap_ci(
    per_sample: Sequence[float],
    *,
    images: Images | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Interval of the mean over samples at confidence `level` in (0, 1).

    images: the image of each sample; None takes every sample as an image of its own.

    The order of the samples does not matter, equal inputs give equal intervals. One sample (or equal ones)
    says nothing about spread: the interval is then that single value. CIDEr with a fixed document frequency
    is a mean over images, so its per-image scores go in here too. Raises UserError for no samples, values
    that are not finite, another number of images, a bad level or fewer than one resample.
    """
    values = _checked(per_sample, level, resamples)
    sums, counts = _by_image(values[:, None], images)
    if values.min() == values.max():
        return Interval(float(values[0]), float(values[0]))
    order = np.lexsort((counts, sums[:, 0]))
    return _between(_means(sums[order], counts[order], resamples, seed)[:, 0], level)


def paired_difference_ci(
    first: Sequence[float],
    second: Sequence[float],
    *,
    images: Images | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Interval of mean(first - second) for two scores of the same samples in the same order.

    Samples are resampled as pairs, so what makes a sample easy for both cancels out; images as in `bootstrap_ci`.
    Raises as that does, and for sequences of different length.
    """
    if len(first) != len(second):
        raise UserError(f"paired scores need the same samples, got {len(first)} and {len(second)}: match the ids")
    difference = np.subtract(np.asarray(first, dtype=float), np.asarray(second, dtype=float))
    return bootstrap_ci(difference.tolist(), images=images, level=level, resamples=resamples, seed=seed)


def gain_share_ci(
    part: Sequence[float],
    whole: Sequence[float],
    base: Sequence[float],
    *,
    images: Images | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Interval of mean(part - base) / mean(whole - base): how much of one defence's gain another has.

    Three scores of the same samples in the same order, resampled together; images as in `bootstrap_ci`. Raises as that
    does, for sequences of different length, and where the whole gain is not positive in every resample: a share of
    nothing means nothing.
    """
    if not len(part) == len(whole) == len(base):
        raise UserError(
            f"paired scores need the same samples, got {len(part)}, {len(whole)} and {len(base)}: match the ids"
        )
    own, full, none = (_checked(scores, level, resamples) for scores in (part, whole, base))
    gains = _means(*_by_image(np.stack([own - none, full - none], axis=1), images), resamples, seed)
    if gains[:, 1].min() <= 0:
        raise UserError("the whole gain is not clearly above 0, so nothing has a share of it: evaluate more samples")
    return _between(gains[:, 0] / gains[:, 1], level)


def _by_image(values: NDArray[np.float64], images: Images | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sums [C, K] and counts [C] over the samples of each image, of scores [n, K]."""
    if images is None:
        return values, np.ones(len(values))
    if len(images) != len(values):
        raise UserError(f"{len(values)} scores need an image each, got {len(images)} images: match the ids")
    rows: dict[Hashable, list[int]] = {}
    for row, image in enumerate(images):
        rows.setdefault(image, []).append(row)
    # fsum: the order of an image's samples does not matter, to the last bit
    sums = [[math.fsum(values[own, k]) for k in range(values.shape[1])] for own in rows.values()]
    return np.array(sums), np.array([float(len(own)) for own in rows.values()])


def _means(sums: NDArray[np.float64], counts: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    """[resamples, K] means over samples; the K sums of an image [C, K] and its count are drawn together."""
    generator = np.random.default_rng(seed)
    means = np.empty((resamples, sums.shape[1]))
    block = max(1, DRAWS_AT_ONCE // sums.size)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        draws = generator.integers(0, len(sums), size=(rows, len(sums)))
        means[start : start + rows] = sums[draws].sum(axis=1) / counts[draws].sum(axis=1)[:, None]
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
