"""Wilson's interval against its definition: the proportions that a z-test at this level does not reject."""

import math

import pytest

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
