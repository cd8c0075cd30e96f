"""BPDA (Athalye et al. 2018, arXiv 1802.00420): the value of one loss, the gradient of another."""

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
