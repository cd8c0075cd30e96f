"""The mean over draws, its gradient, and a straight-through function, on losses that are known in closed form."""

import pytest
import torch
from torch import Tensor

from attacks import apgd
from attacks.eot import mean_over_draws
from attacks.losses import LossFn
from attacks.straight_through import identity_backward

SHIFTS = [0.1, -0.4, 0.9]


def loss_of(draw: int) -> LossFn:
    return lambda x, index: (x - SHIFTS[draw]).pow(3).flatten(1).sum(1)


def slope(loss: LossFn, x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    point = x.clone().requires_grad_()
    value = loss(point, [0, 1, 2])
    (found,) = torch.autograd.grad((value * weights).sum(), point)
    return value.detach(), found


def test_the_mean_and_its_gradient_are_those_of_one_graph_over_all_draws() -> None:
    x, weights = torch.rand(3, 3, 4, 4, dtype=torch.float64), torch.tensor([1.0, -2.0, 0.5])
    value, found = slope(mean_over_draws(loss_of, 3), x, weights)

    def plain(images: Tensor, index: list[int]) -> Tensor:
        return torch.stack([loss_of(draw)(images, index) for draw in range(3)]).mean(0)

    expected_value, expected = slope(plain, x, weights)
    torch.testing.assert_close(value, expected_value)
    torch.testing.assert_close(found, expected)


def test_without_gradients_none_is_computed() -> None:
    asked = []

    def counted(draw: int) -> LossFn:
        def loss(x: Tensor, index: list[int]) -> Tensor:
            asked.append((draw, torch.is_grad_enabled()))
            return loss_of(draw)(x, index)

        return loss

    with torch.no_grad():
        value = mean_over_draws(counted, 3)(torch.rand(3, 3, 4, 4), [0, 1, 2])
    assert not value.requires_grad
    assert asked == [(0, False), (1, False), (2, False)]


def test_one_draw_is_that_loss_itself() -> None:
    only = loss_of(0)
    assert mean_over_draws(lambda draw: only, 1) is only
    with pytest.raises(ValueError, match="at least 1"):
        mean_over_draws(loss_of, 0)


def test_a_loss_without_a_path_to_x_has_gradient_zero() -> None:
    constant = torch.ones(3, requires_grad=True)
    _, found = slope(mean_over_draws(lambda draw: lambda x, index: constant * draw, 2), torch.rand(3, 1), torch.ones(3))
    assert torch.equal(found, torch.zeros(3, 1))


def test_an_attack_on_the_mean_beats_one_on_a_single_draw() -> None:
    x = torch.full((1, 3, 8, 8), 0.5)
    kinds = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))

    def of(draw: int) -> LossFn:
        return lambda images, index: (images * kinds[draw]).flatten(1).sum(1)

    mean = mean_over_draws(of, 6)
    reached = [
        float(mean(apgd(loss, x, eps=0.1, steps=20, norm="Linf", seed=[0]).x_adv, [0])) for loss in (mean, of(0))
    ]
    best = float(mean(x, [0])) + 0.1 * float(kinds.mean(0).abs().sum())
    assert reached[0] == pytest.approx(best, rel=1e-3)
    assert reached[1] < 0.8 * best


def test_straight_through_keeps_the_value_to_the_bit_and_the_gradient_of_its_input() -> None:
    x = torch.rand(2, 3, 5, 5).requires_grad_()
    made = identity_backward(lambda images: (images * 3).round() / 3, x)
    assert torch.equal(made.detach(), (x.detach() * 3).round() / 3)
    (found,) = torch.autograd.grad((made * torch.arange(150).view(2, 3, 5, 5)).sum(), x)
    assert torch.equal(found, torch.arange(150.0).view(2, 3, 5, 5))
