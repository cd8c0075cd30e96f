"""When a difference is a finding: paired by image, beyond its interval AND large enough to matter.

A difference that is large but not beyond its interval is a warning, not a failure: a handful of images can
suggest a flaw, more of them must prove it. The interval is Student's t, which is honest for 3 or 4 images where
a percentile bootstrap is far too narrow; a single image never fails a comparison.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import NamedTuple

from eval_tasks.audit.findings import Verdict
from eval_tasks.metrics.bootstrap import Images

MARGIN = 0.1
"""Share of an attack's own gain (or of the clean score) below which a difference is of no account. Two runs of one
and the same attack from other starting points differ by some percent."""

# Quantiles 0.975 of Student's t with 1, 2, ... degrees of freedom; beyond the table the expansion below is exact to
# three digits.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
_NORMAL = 1.95996


class Difference(NamedTuple):
    """Mean of paired differences with its 95 % interval; infinite bounds where one image gives no spread."""

    mean: float
    low: float
    high: float


def difference(first: Sequence[float], second: Sequence[float], images: Images | None = None) -> Difference:
    """Mean of first - second, paired by place, with its interval over images.

    images: the image of each pair, as in `bootstrap_ci`. Pairs of one image count as one independent deviation, their
    sum (the cluster-robust variance of a mean). Raises ValueError for no values or unequal numbers of them.
    """
    values = [a - b for a, b in zip(first, second, strict=True)]
    if not values:
        raise ValueError("a difference needs at least one pair")
    mean = math.fsum(values) / len(values)
    apart: dict[Hashable, float] = defaultdict(float)
    for value, image in zip(values, range(len(values)) if images is None else images, strict=True):
        apart[image] += value - mean
    n = len(apart)
    if n == 1:
        return Difference(mean, -math.inf, math.inf)
    variance = n / (n - 1) * math.fsum(total**2 for total in apart.values()) / len(values) ** 2
    reach = t_quantile(n - 1) * math.sqrt(variance)
    return Difference(mean, mean - reach, mean + reach)


def t_quantile(degrees: int) -> float:
    """0.975 quantile of Student's t (Cornish-Fisher beyond 15 degrees of freedom, Abramowitz and Stegun 26.7.5)."""
    if degrees <= len(_T):
        return _T[degrees - 1]
    z, v = _NORMAL, degrees
    return z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)


def exceeds(found: Difference, margin: float) -> Verdict:
    """`fail` when the difference is above the margin and its whole interval above 0; `warn` when only the first."""
    if found.mean <= margin or found.mean <= 0:
        return "pass"
    return "fail" if found.low > 0 else "warn"


def bounded(value: float) -> float | None:
    """For JSON, which has no infinity."""
    return value if math.isfinite(value) else None
