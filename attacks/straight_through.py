"""BPDA (Athalye et al. 2018, arXiv 1802.00420): the value of one function, the gradient of another."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attacks.losses import LossFn


def straight_through(value: LossFn, gradient: LossFn) -> LossFn:
    """A loss whose value is `value`'s and whose gradient is `gradient`'s: for an attack that walks past a defence
    on the way back. `value` is computed without its own graph."""

    def loss_fn(x: Tensor, index: list[int]) -> Tensor:
        guide = gradient(x, index)
        with torch.no_grad():
            wanted = value(x.detach(), index)
        return guide + (wanted - guide.detach())

    return loss_fn


def identity_backward(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`function(x)` to the bit, with the gradient that x itself would have. The result must have x's shape for that."""
    return _IdentityBackward.apply(x, function)


class _IdentityBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        return function(x.detach())

    @staticmethod
    def backward(ctx: Any, *gradient: Any) -> tuple[Tensor, None]:
        return gradient[0], None
