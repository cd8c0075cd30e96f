"""Expectation over transformation (Athalye et al. 2018, arXiv 1707.07397): attack the mean over a defence's draws."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from attacks.losses import LossFn


def mean_over_draws(loss_of: Callable[[int], LossFn], draws: int) -> LossFn:
    """The mean of the losses `loss_of(0)` to `loss_of(draws - 1)`, one a draw; of a single draw that loss itself.

    Each must give the losses [len(index)] of its rows, every one of its own row of x alone. The draws are passed one
    after the other, forward and backward, so that they need no more memory than one. ValueError for draws under 1.
    """
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    losses = [loss_of(draw) for draw in range(draws)]
    if draws == 1:
        return losses[0]
    return lambda x, index: _Mean.apply(x, index, losses)


class _Mean(torch.autograd.Function):
    """The gradient is had with the value: a row's own, which its loss's gradient then scales."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: list[int], losses: Sequence[LossFn]) -> Tensor:
        needed = ctx.needs_input_grad[0]
        total, slope = None, torch.zeros_like(x) if needed else None
        for loss in losses:
            with torch.set_grad_enabled(needed):
                point = x.detach().requires_grad_(needed)
                value = loss(point, index)
                if slope is not None and value.requires_grad:
                    (found,) = torch.autograd.grad(value.sum(), point, allow_unused=True)
                    slope += 0 if found is None else found
            total = value.detach() if total is None else total + value.detach()
        if slope is not None:
            ctx.save_for_backward(slope / len(losses))
        assert total is not None
        return total / len(losses)

    @staticmethod
    def backward(ctx: Any, *gradient: Any) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return slope * gradient[0].to(slope).view(-1, *[1] * (slope.ndim - 1)), None, None
