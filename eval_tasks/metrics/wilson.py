"""Wilson's score interval of a proportion (Wilson, Journal of the American Statistical Association 22, 1927).

A bootstrap of hits that are all alike says nothing about spread: 25 of 25 would get the interval [100 %, 100 %].
"""

from __future__ import annotations

import math
from statistics import NormalDist

from eval_tasks.metrics.bootstrap import Interval


def wilson_ci(hits: int, n: int, *, level: float = 0.95) -> Interval:
    """Interval, in [0, 1], of the chance of a hit after `hits` in `n` >= 1 trials; ValueError for other counts."""
    if not 0 <= hits <= n or n < 1:
        raise ValueError(f"hits must be between 0 and n, n at least 1: got {hits} of {n}")
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share, weight = hits / n, z * z / n
    centre = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(share * (1 - share) / n + weight / (4 * n))
    # exact at the ends, where rounding would leave a trace of 1e-17
    return Interval(0.0 if hits == 0 else centre - half, 1.0 if hits == n else centre + half)
