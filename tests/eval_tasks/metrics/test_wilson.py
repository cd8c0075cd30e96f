"""Wilson's interval against its definition: the proportions that a z-test at this level does not reject."""

import math

import pytest

from eval_tasks.metrics import bootstrap_ci
from eval_tasks.metrics.intervals import hits_ci, score_ci
from eval_tasks.metrics.wilson import wilson_ci


@pytest.mark.parametrize(("hits", "n"), [(1, 3), (7, 25), (24, 25), (250, 500)])
def test_the_ends_are_where_the_z_test_begins_to_reject(hits: int, n: int) -> None:
    for end in wilson_ci(hits, n):
        assert abs(hits / n - end) == pytest.approx(1.959963985 * math.sqrt(end * (1 - end) / n), rel=1e-9)


def test_known_values_and_the_ends() -> None:
    # 25 of 25: n / (n + z^2)
    assert wilson_ci(25, 25) == pytest.approx((25 / (25 + 1.959963985**2), 1.0))
    assert wilson_ci(0, 25) == pytest.approx((0.0, 1.959963985**2 / (25 + 1.959963985**2)))
    assert wilson_ci(0, 25).low == 0
    assert wilson_ci(25, 25).high == 1


@pytest.mark.parametrize(("hits", "n"), [(-1, 3), (4, 3), (0, 0)])
def test_impossible_counts_are_refused(hits: int, n: int) -> None:
    with pytest.raises(ValueError, match="hits must be"):
        wilson_ci(hits, n)


# Where scores get it


def test_answers_that_are_all_right_or_all_wrong_get_an_interval_over_images() -> None:
    low = wilson_ci(8, 8).low
    assert low == pytest.approx(0.676, abs=1e-3)  # 8 of 8, as tables of Wilson's interval have it
    for metric in ("vqa_accuracy", "accuracy", "recall@1"):
        assert score_ci([100.0] * 8, metric) == (100 * low, 100)
        assert score_ci([0.0] * 8, metric) == pytest.approx((0, 100 * (1 - low)))
    # 8 questions about 4 images are 4 trials
    images = ["a", "a", "b", "b", "c", "c", "d", "d"]
    assert score_ci([100.0] * 8, "vqa_accuracy", images) == (100 * wilson_ci(4, 4).low, 100)


def test_other_scores_keep_their_bootstrap() -> None:
    assert score_ci([100.0] * 8, "cider") == (100, 100)  # no proportion: it may be above 100
    assert score_ci([30.0] * 8, "vqa_accuracy") == (30, 30)
    mixed = [100.0] * 7 + [0.0]
    assert score_ci(mixed, "accuracy") == bootstrap_ci(mixed)


def test_hits_are_counted_by_image_only_where_samples_share_one() -> None:
    hits = [True] * 3 + [False] * 5
    assert hits_ci(hits) == hits_ci(hits, list("abcdefgh")) == pytest.approx([100 * end for end in wilson_ci(3, 8)])
    shared = hits_ci(hits, list("aabbccdd"))
    assert shared == bootstrap_ci([100.0 * hit for hit in hits], images=list("aabbccdd"))
    assert hits_ci([True] * 8, list("aabbccdd")) == pytest.approx([100 * end for end in wilson_ci(4, 4)])
