"""Attacks without gradients, in the low band and past a defence."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks import apgd
from attacks.blackbox import random_search, spsa
from attacks.lowfrequency import low_frequency_apgd
from attacks.norms import length
from attacks.straight_through import straight_through

SHAPE = (3, 3, 16, 16)


def images(seed=0, shape=SHAPE):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def linear(seed=1, smooth=False):
    """<w, x> a sample: its optimum in the Linf ball is known."""
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(SHAPE, generator=g)
    if smooth:
        w = torch.randn(SHAPE[0], 3, 1, 1, generator=g).expand(SHAPE)
    return w, lambda x, index: (w[index] * x).flatten(1).sum(1)


SEARCHES = {
    "random search": lambda loss, x, **more: random_search(loss, x, queries=200, **more),
    "spsa": lambda loss, x, **more: spsa(loss, x, steps=25, pairs=4, **more),
}


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("search", SEARCHES)
def test_a_search_stays_in_the_ball_and_finds_more_than_the_start(search, norm):
    x = images()
    eps = 8 / 255 if norm == "Linf" else 0.5
    _, loss = linear(smooth=True)
    asked = 0

    def counted(x, index):
        nonlocal asked
        asked += 1
        return loss(x, index)

    found = SEARCHES[search](counted, x, eps=eps, norm=norm, seed=3)
    assert asked == found.queries
    everyone = [0, 1, 2]
    assert torch.equal(loss(found.x_adv, everyone), found.loss)
    assert (length(found.x_adv - x, norm) <= eps * (1 + 1e-5)).all()
    assert found.x_adv.min() >= 0
    assert found.x_adv.max() <= 1
    best = apgd(loss, x, eps=eps, steps=50, norm=norm).loss - loss(x, everyone)
    gained = found.loss - loss(x, everyone)
    assert (gained > 0.2 * best).all()  # noise gains a thirtieth
    assert (gained <= best * (1 + 1e-4)).all()


@pytest.mark.parametrize("search", SEARCHES)
def test_a_sample_is_searched_alike_alone_and_among_others(search):
    x = images()
    _, loss = linear()
    whole = SEARCHES[search](loss, x, eps=8 / 255, seed=[5, 6, 7])
    alone = SEARCHES[search](lambda x, index: loss(x, [2]), x[2:], eps=8 / 255, seed=[7])
    assert torch.equal(whole.x_adv[2:], alone.x_adv)
    again = SEARCHES[search](loss, x, eps=8 / 255, seed=[5, 6, 7])
    assert torch.equal(whole.x_adv, again.x_adv)
    other = SEARCHES[search](loss, x, eps=8 / 255, seed=[8, 9, 10])
    assert not torch.equal(whole.x_adv, other.x_adv)


@pytest.mark.parametrize("search", SEARCHES)
def test_a_search_never_ends_below_the_clean_loss(search):
    x = images()

    def peak(x_now, index):  # the clean image is the best there is
        return -(x_now - x[index]).abs().flatten(1).sum(1)

    found = SEARCHES[search](peak, x, eps=8 / 255)
    assert torch.equal(found.x_adv, x)
    assert (found.loss == 0).all()


def test_spsa_agrees_with_the_gradient_on_a_linear_loss():
    _, loss = linear()
    estimate = spsa(loss, images(), eps=8 / 255, steps=60, pairs=16)
    exact = apgd(loss, images(), eps=8 / 255, steps=50)
    start = loss(images(), [0, 1, 2])
    assert ((estimate.loss - start) > 0.5 * (exact.loss - start)).all()


@pytest.mark.parametrize("search", SEARCHES)
def test_a_search_refuses_what_it_cannot_use(search):
    with pytest.raises(ValueError, match="one finite loss per sample"):
        SEARCHES[search](lambda x, index: x.flatten(1).sum(1) * float("nan"), images(), eps=0.1)
    with pytest.raises(ValueError, match="eps"):
        SEARCHES[search](linear()[1], images(), eps=0)
    with pytest.raises(ValueError, match="seed"):
        SEARCHES[search](linear()[1], images(), eps=0.1, seed=[1])
    with pytest.raises(ValueError, match="integer >= 2"):
        random_search(linear()[1], images(), eps=0.1, queries=1)
    with pytest.raises(ValueError, match="integer >= 1"):
        spsa(linear()[1], images(), eps=0.1, steps=0)


@settings(max_examples=20, deadline=None)
@given(
    height=st.integers(5, 17),
    width=st.integers(5, 17),
    factor=st.integers(1, 6),
    norm=st.sampled_from(["Linf", "L2"]),
    seed=st.integers(0, 100),
)
def test_a_low_frequency_perturbation_stays_in_the_ball_and_the_box(height, width, factor, norm, seed):
    x = images(seed, (2, 3, height, width)).round()  # all at the box's corners
    w = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed + 1))
    eps = 12 / 255 if norm == "Linf" else 0.4
    x_adv = low_frequency_apgd(
        lambda x, i: (w[i] * x).flatten(1).sum(1), x, eps=eps, steps=4, factor=factor, norm=norm, seed=seed
    )
    assert (length(x_adv - x, norm) <= eps * (1 + 1e-5)).all()
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1


@pytest.mark.parametrize("factor", [2, 4])
def test_the_perturbation_is_in_the_low_band_and_finds_the_optimum_there(factor):
    shape = (2, 3, 32, 32)
    x = 0.3 + 0.4 * images(shape=shape)  # far from the box
    colour = torch.randn(2, 3, 1, 1, generator=torch.Generator().manual_seed(2))
    x_adv = low_frequency_apgd(lambda x, i: (colour[i] * x).flatten(1).sum(1), x, eps=8 / 255, steps=30, factor=factor)
    # a constant is in every band: the best perturbation is eps times the colour's sign
    assert torch.allclose(x_adv - x, (8 / 255 * colour.sign()).expand(shape), atol=1e-5)
    w = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    rough = low_frequency_apgd(lambda x, i: (w[i] * x).flatten(1).sum(1), x, eps=8 / 255, steps=30, factor=factor) - x
    power = torch.fft.fft2(rough).abs().square().sum((0, 1))
    frequency = torch.fft.fftfreq(32).abs()
    high = torch.maximum(frequency[:, None], frequency[None, :]) > 1 / factor  # the first zero of bilinear weights
    white = torch.fft.fft2(w.sign()).abs().square().sum((0, 1))
    assert power[high].sum() / power.sum() < 0.1 * white[high].sum() / white.sum() + 0.05
    plain = apgd(lambda x, i: (w[i] * x).flatten(1).sum(1), x, eps=8 / 255, steps=30).loss
    low = (w * (x + rough)).flatten(1).sum(1)
    assert (low > (w * x).flatten(1).sum(1)).all()
    assert (low < plain).all()


def test_a_low_frequency_attack_refuses_what_it_cannot_use():
    with pytest.raises(ValueError, match="factor"):
        low_frequency_apgd(linear()[1], images(), eps=0.1, factor=0)
    with pytest.raises(ValueError, match=r"at most 0\.5"):
        low_frequency_apgd(linear()[1], images(), eps=0.6)
    with pytest.raises(FloatingPointError, match="not finite"):
        low_frequency_apgd(lambda x, i: x.flatten(1).sum(1) * float("nan"), images(), eps=0.1, steps=2)


def test_straight_through_has_the_value_of_one_loss_and_the_gradient_of_the_other():
    x = images().double().requires_grad_()
    value = straight_through(lambda x, i: x.round().flatten(1).sum(1), lambda x, i: (x**2).flatten(1).sum(1))(
        x, [0, 1, 2]
    )
    assert torch.allclose(value, x.detach().round().flatten(1).sum(1))
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert torch.allclose(gradient, 2 * x.detach())
