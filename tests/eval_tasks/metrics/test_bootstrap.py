"""Bootstrap intervals."""

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval_tasks.metrics import Interval, bootstrap, bootstrap_ci, gain_share_ci, paired_difference_ci
from lvlm_radapt.utils.errors import UserError

SCORES = st.lists(st.floats(-100, 200, allow_subnormal=False), min_size=1, max_size=30)


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_close_to_the_normal_interval_of_a_large_sample(level: float) -> None:
    values = np.random.default_rng(3).gamma(2.0, 10.0, size=800)
    low, high = bootstrap_ci(values.tolist(), level=level, resamples=20_000)
    half = NormalDist().inv_cdf((1 + level) / 2) * values.std() / math.sqrt(values.size)
    assert low == pytest.approx(values.mean() - half, abs=0.12 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.12 * half)


def test_exact_distribution_of_two_samples() -> None:
    # The mean of two draws from {0, 1} is 0, 1/2, 1 with probability 1/4, 1/2, 1/4.
    assert bootstrap_ci([0.0, 1.0], level=0.95) == Interval(0.0, 1.0)
    assert bootstrap_ci([0.0, 1.0], level=0.40) == Interval(0.5, 0.5)


def test_covers_the_true_mean_about_as_often_as_promised() -> None:
    generator = np.random.default_rng(11)
    hits = 0
    for trial in range(300):
        low, high = bootstrap_ci(generator.normal(1.0, 2.0, size=60).tolist(), resamples=400, seed=trial)
        hits += low <= 1.0 <= high
    assert 0.90 <= hits / 300 <= 0.985  # three standard errors around 0.94


@settings(deadline=None, max_examples=60)
@given(SCORES, st.integers(0, 5), st.randoms())
def test_bounds_determinism_and_order(scores: list[float], seed: int, rng) -> None:
    interval = bootstrap_ci(scores, resamples=200, seed=seed)
    assert min(scores) - 1e-9 <= interval.low <= interval.high <= max(scores) + 1e-9
    assert bootstrap_ci(scores, resamples=200, seed=seed) == interval
    shuffled = list(scores)
    rng.shuffle(shuffled)
    assert bootstrap_ci(shuffled, resamples=200, seed=seed) == interval


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=20))
def test_higher_level_contains_lower_level(scores: list[float]) -> None:
    narrow, wide = (bootstrap_ci(scores, level=0.5, resamples=300), bootstrap_ci(scores, level=0.99, resamples=300))
    assert wide.low <= narrow.low <= narrow.high <= wide.high


def test_seed_matters_and_unit_scales() -> None:
    scores = [0.1, 0.5, 0.9, 0.2, 0.7, 0.4]
    assert bootstrap_ci(scores, seed=0, resamples=50) != bootstrap_ci(scores, seed=1, resamples=50)
    plain, percent = bootstrap_ci(scores), bootstrap_ci([100 * score for score in scores])
    assert percent == pytest.approx((100 * plain.low, 100 * plain.high))


@pytest.mark.parametrize("scores", [[37.5], [37.5] * 9])
def test_equal_samples_give_a_point(scores: list[float]) -> None:
    assert bootstrap_ci(scores) == Interval(37.5, 37.5)


def test_input_is_left_alone() -> None:
    scores = np.array([3.0, 1.0, 2.0])
    bootstrap_ci(scores)
    assert scores.tolist() == [3.0, 1.0, 2.0]


def test_blocks_of_draws_change_nothing_but_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.random.default_rng(0).random(50).tolist()
    whole = bootstrap_ci(scores, resamples=4000)
    monkeypatch.setattr(bootstrap, "DRAWS_AT_ONCE", 7000)
    low, high = bootstrap_ci(scores, resamples=4000)
    width = whole.high - whole.low
    assert abs(low - whole.low) < 0.05 * width
    assert abs(high - whole.high) < 0.05 * width


def test_paired_difference_is_narrower_than_unpaired() -> None:
    generator = np.random.default_rng(5)
    easy = generator.normal(50, 20, size=300)
    first, second = easy + generator.normal(2, 1, size=300), easy
    low, high = paired_difference_ci(first.tolist(), second.tolist())
    difference = first - second
    half = 1.96 * difference.std() / math.sqrt(300)
    assert (low, high) == pytest.approx((difference.mean() - half, difference.mean() + half), abs=0.15 * half)
    assert low > 1.5  # the spread of the samples themselves, 20, would hide the difference


def test_paired_difference_changes_sign_with_its_arguments() -> None:
    first, second = [0.2, 0.9, 0.4, 0.8], [0.1, 0.3, 0.5, 0.2]
    low, high = paired_difference_ci(first, second, resamples=20_000)
    other = paired_difference_ci(second, first, resamples=20_000)
    assert other == pytest.approx((-high, -low), abs=0.02)
    assert paired_difference_ci(first, first) == Interval(0.0, 0.0)


# Samples that share images


def twice(scores: list[float]) -> list[float]:
    return [score for score in scores for _ in range(2)]


def pairs(n: int) -> list[str]:
    return [f"image {index}" for index in range(n) for _ in range(2)]


def width(interval: Interval) -> float:
    return interval.high - interval.low


@pytest.mark.parametrize("n", [20, 400])
def test_perfectly_dependent_pairs_are_worth_their_half(n: int) -> None:
    """Every sample twice, from one image: nothing is learnt by the second, so the interval is that of the half. Taken
    for independent, the samples give one that is the root of 2 too narrow."""
    scores = np.random.default_rng(7).gamma(2.0, 10.0, size=n).tolist()
    half, whole = bootstrap_ci(scores), bootstrap_ci(twice(scores), images=pairs(n))
    assert whole == half
    naive = bootstrap_ci(twice(scores))
    assert width(whole) / width(naive) == pytest.approx(math.sqrt(2), rel=0.1)


def test_dependent_pairs_in_differences_and_shares() -> None:
    draw = np.random.default_rng(8)
    base = draw.normal(20, 10, size=200)
    part, whole = base + draw.normal(6, 8, size=200), base + draw.normal(12, 8, size=200)
    three = [part.tolist(), whole.tolist(), base.tolist()]
    images = pairs(200)
    half = paired_difference_ci(three[0], three[2])
    assert paired_difference_ci(twice(three[0]), twice(three[2]), images=images) == half
    assert width(half) / width(paired_difference_ci(twice(three[0]), twice(three[2]))) == pytest.approx(1.41, abs=0.12)
    share = gain_share_ci(*three)
    assert gain_share_ci(*map(twice, three), images=images) == share
    assert width(share) / width(gain_share_ci(*map(twice, three))) == pytest.approx(1.41, abs=0.12)


def test_the_estimate_stays_the_mean_over_samples_where_images_have_several() -> None:
    # two draws of two images: 3 of 3, 3 of 4, 0 of 1 with probability 1/4, 1/2, 1/4
    scores, images = [1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"]
    assert bootstrap_ci(scores, images=images, level=0.95) == Interval(0.0, 1.0)
    assert bootstrap_ci(scores, images=images, level=0.40) == Interval(0.75, 0.75)


def test_equals_a_slow_bootstrap_that_draws_images_with_all_their_samples() -> None:
    draw = np.random.default_rng(9)
    images = draw.integers(0, 60, size=240)
    scores = draw.normal(50, 10, size=240) + 20 * draw.normal(size=60)[images]
    names = sorted(set(images.tolist()))
    means = []
    for _ in range(4000):
        drawn = [score for image in draw.choice(names, size=len(names)) for score in scores[images == image]]
        means.append(sum(drawn) / len(drawn))
    slow = Interval(*np.quantile(means, [0.025, 0.975]))
    fast = bootstrap_ci(scores.tolist(), images=images.tolist(), resamples=20_000)
    assert fast == pytest.approx(slow, abs=0.06 * width(slow))
    assert width(fast) > 1.3 * width(bootstrap_ci(scores.tolist()))


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.floats(-100, 200, allow_subnormal=False), st.sampled_from("abcdef")), min_size=1),
    st.randoms(),
)
def test_the_order_of_samples_and_the_names_of_images_do_not_matter(samples: list[tuple[float, str]], rng) -> None:
    def interval(some: list[tuple[float, str]]) -> Interval:
        return bootstrap_ci([score for score, _ in some], images=[image for _, image in some], resamples=100)

    shuffled = list(samples)
    rng.shuffle(shuffled)
    assert interval(shuffled) == interval(samples)
    assert interval([(score, "gbcdefa"["abcdef".index(image)]) for score, image in samples]) == interval(samples)


def test_an_image_of_its_own_for_every_sample_changes_nothing() -> None:
    scores = np.random.default_rng(2).normal(size=50).tolist()
    assert bootstrap_ci(scores, images=range(50)) == bootstrap_ci(scores)


@pytest.mark.parametrize(
    ("scores", "options", "message"),
    [
        ([1.0, 2.0], {"images": ["a"]}, "2 scores need an image each, got 1"),
        ([], {}, "at least one score"),
        ([[1.0], [2.0]], {}, "flat list"),
        ([1.0, math.nan], {}, "finite"),
        ([1.0, math.inf], {}, "finite"),
        ([1.0, 2.0], {"level": 0.0}, "confidence level"),
        ([1.0, 2.0], {"level": 95}, "confidence level"),
        ([1.0, 2.0], {"resamples": 0}, "resamples"),
    ],
)
def test_user_errors(scores: list, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        bootstrap_ci(scores, **options)


def test_paired_user_errors() -> None:
    with pytest.raises(UserError, match="same samples, got 2 and 1"):
        paired_difference_ci([1.0, 2.0], [1.0])
    with pytest.raises(UserError, match="at least one score"):
        paired_difference_ci([], [])


def test_a_share_of_a_gain_agrees_with_fieller() -> None:
    """Fieller's interval of a ratio of two correlated means, solved as the quadratic it is."""
    draw = np.random.default_rng(5)
    base = (draw.random(900) < 0.25) * 100.0
    whole = np.maximum(base, (draw.random(900) < 0.5) * 100.0)
    part = np.where(draw.random(900) < 0.8, whole, base)
    low, high = gain_share_ci(part.tolist(), whole.tolist(), base.tolist(), resamples=20_000)
    top, bottom = part - base, whole - base
    z = NormalDist().inv_cdf(0.975) ** 2 / 900
    (a, c), (_, b) = np.cov(top, bottom)
    square, middle, free = bottom.mean() ** 2 - z * b, top.mean() * bottom.mean() - z * c, top.mean() ** 2 - z * a
    root = math.sqrt(middle**2 - square * free)
    fieller = (middle - root) / square, (middle + root) / square
    assert (low, high) == pytest.approx(fieller, abs=0.05 * (fieller[1] - fieller[0]))
    assert gain_share_ci(whole.tolist(), whole.tolist(), base.tolist()) == Interval(1.0, 1.0)
    assert gain_share_ci(base.tolist(), whole.tolist(), base.tolist()) == Interval(0.0, 0.0)


def test_a_share_of_no_gain_is_refused() -> None:
    with pytest.raises(UserError, match="not clearly above 0"):
        gain_share_ci([1.0, 2.0], [2.0, 0.0], [1.0, 1.0])
    with pytest.raises(UserError, match="same samples, got 1, 2 and 2"):
        gain_share_ci([1.0], [2.0, 0.0], [1.0, 1.0])
