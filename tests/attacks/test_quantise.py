"""The 8-bit image that is scored stays in the ball, and is the nearest one for budgets in whole levels."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attacks.eight_bit import from_8bit, to_8bit


def _images(seed: int) -> torch.Tensor:
    levels = torch.randint(0, 256, (2, 3, 5, 4), generator=torch.Generator().manual_seed(seed))
    return from_8bit(levels)


@given(seed=st.integers(0, 99), eps=st.floats(0.0005, 0.2), norm=st.sampled_from(["Linf", "L2"]))
def test_the_ball_is_never_left(seed, eps, norm):
    x = _images(seed)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed + 1))
    length = noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    noise = eps * (noise.clamp(-1, 1) if norm == "Linf" else noise / length)
    pixels = to_8bit((x + noise).clamp(0, 1), x, eps=eps, norm=norm)
    distance = (pixels.double() - (x.double() * 255).round()).flatten(1) / 255
    size = distance.abs().amax(1) if norm == "Linf" else distance.norm(dim=1)
    assert bool((size <= eps * (1 + 1e-6) + 1e-6).all())


@pytest.mark.parametrize("level", [1, 2, 4, 8, 16])
def test_whole_levels_are_rounded_plainly_and_their_extremes_kept(level):
    x = _images(0)
    eps = level / 255
    extreme = (x + eps * torch.sign(torch.randn(x.shape))).clamp(0, 1)
    pixels = to_8bit(extreme, x, eps=eps, norm="Linf")
    assert torch.equal(pixels.double(), (extreme.double() * 255).round())
    clean = (x.double() * 255).round()
    inner = (clean > level) & (clean < 255 - level)
    assert bool(((pixels.double() - clean).abs() == level)[inner].all())


def test_eight_bit_values_come_back_as_the_image_processors_rescale_them():
    levels = torch.arange(256, dtype=torch.uint8)
    expected = (np.arange(256).astype(np.float64) * (1 / 255)).astype(np.float32)
    assert np.array_equal(from_8bit(levels).numpy(), expected)


@given(seed=st.integers(0, 99), eps=st.floats(1 / 255, 0.2))
def test_rounding_leaves_a_spread_l2_budget_to_the_image(seed, eps):
    x = _images(seed).clamp(60 / 255, 190 / 255)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed + 1))
    noise = eps * noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    pixels = to_8bit(x + noise, x, eps=eps, norm="L2")
    moved = (pixels.double() - (x.double() * 255).round()).flatten(1)
    wanted = noise.double().flatten(1) * 255
    # one more value moved by a level would be too long: a square grows by at most 2 |d| + 1
    longest = wanted.abs().amax(1)
    assert bool((moved.square().sum(1) > (255 * eps) ** 2 - 2 * longest - 1.01).all())
    assert bool((moved * wanted >= 0).all())  # towards the attacked image, never past the next level
    assert bool(((moved - wanted).abs() < 1).all())


def test_the_largest_remainders_of_an_l2_perturbation_are_rounded_up():
    x = from_8bit(torch.full((1, 3, 1, 2), 100))
    levels = torch.tensor([0.9, -0.2, 1.0, 0.6, 0.0, -2.5]).view(1, 3, 1, 2)  # squares: 8.46
    pixels = to_8bit((x.double() + levels / 255).float(), x, eps=1.0, norm="L2")
    # 0, 0, 1, 0, 0, -2 is 5; 0.9 to 1 adds 1, 0.6 to 1 another, -2.5 to -3 would add 5
    assert (pixels.int() - 100).flatten().tolist() == [1, 0, 1, 1, 0, -2]
