"""Seeded noise: its size, its distribution, and that a sample's noise is its own."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks import random_noise
from attacks.noise import random_start, sample_seeds

MIDDLE = torch.full((4, 3, 16, 16), 0.5, dtype=torch.float64)


@settings(max_examples=40, deadline=None)
@given(
    norm=st.sampled_from(["Linf", "L2"]),
    eps=st.floats(1e-3, 3.0),
    seed=st.integers(-(2**70), 2**70),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_noise_stays_in_ball_and_box(norm, eps, seed, dtype):
    x = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    ulp = torch.finfo(dtype).eps
    for noisy in (
        random_noise(x, eps=eps, norm=norm, seed=seed),
        random_start(x, eps=eps, norm=norm, seeds=sample_seeds(seed, 2)),
    ):
        assert noisy.dtype == dtype
        assert noisy.min() >= 0
        assert noisy.max() <= 1
        delta = (noisy.double() - x.double()).flatten(1)
        if norm == "Linf":
            assert delta.abs().max() <= eps + ulp * max(1, eps)
        else:
            assert delta.norm(dim=1).max() <= eps * (1 + 8 * ulp) + math.sqrt(105) * ulp


def test_noise_has_full_strength_away_from_the_box():
    eps = 0.1
    signs = (random_noise(MIDDLE, eps=eps, seed=0) - MIDDLE) / eps
    torch.testing.assert_close(signs.abs(), torch.ones_like(signs))
    uniform = (random_start(MIDDLE, eps=eps, seeds=[0, 1, 2, 3]) - MIDDLE) / eps
    torch.testing.assert_close(uniform.abs().amax((1, 2, 3)), torch.ones(4, dtype=torch.float64))
    for noisy in (
        random_noise(MIDDLE, eps=eps, norm="L2"),
        random_start(MIDDLE, eps=eps, norm="L2", seeds=[0, 1, 2, 3]),
    ):
        torch.testing.assert_close((noisy - MIDDLE).flatten(1).norm(dim=1), torch.full((4,), eps, dtype=torch.float64))


def test_distribution():
    # 3072 values, 5 standard deviations: signs are fair, the start is uniform on [-1, 1] (variance 1/3),
    # coordinates of L2 directions are normal with standard deviation 1/sqrt(n).
    n = MIDDLE.numel()
    signs = (random_noise(MIDDLE, eps=0.1, seed=3) - MIDDLE) / 0.1
    assert abs(signs.mean()) < 5 / math.sqrt(n)
    uniform = (random_start(MIDDLE, eps=0.1, seeds=[3, 4, 5, 6]) - MIDDLE) / 0.1
    assert abs(uniform.mean()) < 5 * math.sqrt(1 / 3 / n)
    assert abs(uniform.var() - 1 / 3) < 5 * math.sqrt((1 / 5 - 1 / 9) / n)
    normal = (random_noise(MIDDLE, eps=0.1, norm="L2") - MIDDLE) / 0.1 * math.sqrt(3 * 16 * 16)
    assert abs(normal.mean()) < 5 / math.sqrt(n)
    assert abs((normal.abs() < 1).double().mean() - 0.6827) < 5 * math.sqrt(0.6827 * 0.3173 / n)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_a_samples_noise_depends_on_its_own_seed_alone(norm):
    x = torch.rand(5, 3, 4, 4)
    seeds = [9, 8, 7, 9, 2**80]
    whole = random_noise(x, eps=0.1, norm=norm, seed=seeds)
    start = random_start(x, eps=0.1, norm=norm, seeds=seeds, restart=2)
    for rows in ([0], [4], [3, 1], [4, 2, 0]):
        own = [seeds[r] for r in rows]
        assert torch.equal(random_noise(x[rows], eps=0.1, norm=norm, seed=own), whole[rows])
        assert torch.equal(random_start(x[rows], eps=0.1, norm=norm, seeds=own, restart=2), start[rows])
    torch.manual_seed(5)  # the global generator plays no part, and is not disturbed
    state = torch.get_rng_state()
    assert torch.equal(random_noise(x, eps=0.1, norm=norm, seed=seeds), whole)
    assert torch.equal(torch.get_rng_state(), state)


def test_seeds_restarts_and_purposes_are_unrelated():
    x = MIDDLE[:1]
    draws = [random_start(x, eps=0.1, seeds=[s], restart=r) for s in (0, 1, -1, 2**32, 2**64) for r in (0, 1, 2)]
    for i, one in enumerate(draws):
        for other in draws[i + 1 :]:
            both = torch.stack([one - x, other - x]).flatten(1)
            assert abs(torch.corrcoef(both)[0, 1]) < 5 / math.sqrt(x.numel())
    start = random_start(x, eps=0.1, norm="L2", seeds=[0])
    control = torch.stack([random_noise(x, eps=0.1, norm="L2", seed=0) - x, start - x]).flatten(1)
    assert abs(torch.corrcoef(control)[0, 1]) < 5 / math.sqrt(x.numel())


def test_an_int_counts_up_over_the_batch():
    assert sample_seeds(5, 3) == [5, 6, 7]
    assert sample_seeds((2, 2, 9), 3) == [2, 2, 9]
    x = MIDDLE
    assert torch.equal(random_noise(x, eps=0.1, seed=5), random_noise(x, eps=0.1, seed=[5, 6, 7, 8]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": 0.0}, "eps must be"),
        ({"norm": "L0"}, "norm must be"),
        ({"seed": [1, 2]}, "one int per sample"),
        ({"seed": "12"}, "seed must be"),
        ({"x": MIDDLE * 3}, r"\[0, 1\]"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        random_noise(**{"x": MIDDLE, "eps": 0.1, **change})
