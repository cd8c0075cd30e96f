"""Which interval a score gets, and from how many images on a difference may be judged."""

from __future__ import annotations

from collections.abc import Sequence

from eval_tasks.metrics.bootstrap import Images, Interval, bootstrap_ci
from eval_tasks.metrics.wilson import wilson_ci

LEAST = 20
"""Images from which on a paired difference is judged. With fewer, the bootstrap's 95 % interval is too narrow: in
simulations of paired scores (answers that differ on 20 to 60 % of the images, and skewed caption scores) it covers the
truth in as few as 83 of 100 cases with 6 images and 90 with 16. From 20 on it is 92 or more."""

_PROPORTIONS = ("vqa_accuracy", "accuracy", "recall@1")


def count_images(n: int, images: Images | None) -> int:
    """How many images `n` samples have; all of them one each where nothing is known."""
    return n if images is None else len(set(images))


def all_alike(scores: Sequence[float], metric: str) -> bool:
    """Whether all scores of a proportion, in percent, are 0, or all 100. A bootstrap sees no spread there."""
    return metric in _PROPORTIONS and len(scores) > 0 and set(scores) in ({0.0}, {100.0})


def score_ci(scores: Sequence[float], metric: str, images: Images | None = None) -> Interval:
    """95 % interval of the mean score over samples: a bootstrap over images.

    Where `all_alike`, it is Wilson's of as many hits, or misses, as there are images. Raises as `bootstrap_ci`.
    """
    if not all_alike(scores, metric):
        return bootstrap_ci(scores, images=images)
    n = count_images(len(scores), images)
    low, high = wilson_ci(n if scores[0] else 0, n)
    return Interval(100 * low, 100 * high)


def hits_ci(hits: Sequence[bool], images: Images | None = None) -> Interval:
    """95 % interval, in percent, of the chance of a hit: Wilson's; a bootstrap over images where samples share some."""
    n = len(hits)
    if count_images(n, images) == n:
        low, high = wilson_ci(sum(hits), n)
        return Interval(100 * low, 100 * high)
    return score_ci([100.0 * hit for hit in hits], "accuracy", images)
