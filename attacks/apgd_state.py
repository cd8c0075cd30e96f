"""What APGD keeps of each sample in the batch, and its rules for one step."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from attacks.norms import Norm, ascent_direction, project

_MOMENTUM = 0.75  # weight of the new step against the previous one
_RHO = 0.75  # share of steps that must raise the loss, else the step size is halved


def checkpoints(steps: int) -> list[int]:
    """Steps (counted from 1) after which APGD reconsiders its step sizes: 22 % of `steps`, then every stretch
    3 % shorter down to 6 %, each rounded down and at least 1."""
    window, shrink, shortest = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    points = []
    at = window
    while at <= steps:
        points.append(at)
        window = max(window - shrink, shortest)
        at += window
    return points


def checkpoint_windows(steps: int) -> dict[int, int]:
    """Checkpoint -> steps since the one before."""
    points = checkpoints(steps)
    return {at: at - before for before, at in zip([0, *points], points, strict=False)}


class APGDState:
    """The samples in the batch; every tensor and list has them in its first dimension.

    index: place of each in the caller's batch `images`. restart, done: its restart and the steps made in it.
    """

    def __init__(self, images: Tensor, step_size: float, windows: Mapping[int, int]) -> None:
        self.images = images
        self.first_step_size = step_size
        self.windows = windows
        self.index: list[int] = []
        self.restart: list[int] = []
        self.done: list[int] = []
        none = images[:0]
        flag = torch.zeros(0, dtype=torch.bool, device=images.device)
        self.x = none  # the clean images, centres of the balls
        self.x_adv = none
        self.x_previous = none  # x_adv before the last step, for the momentum
        self.gradient = none  # at x_adv
        self.x_best = none
        self.gradient_best = none
        self.loss_best = images.new_zeros(0)
        self.loss_best_at_check = images.new_zeros(0)  # loss_best at the last checkpoint
        self.loss_last = images.new_zeros(0)  # loss after the last step
        self.step_size = images.new_zeros(0, 1, 1, 1)
        self.rises = torch.zeros(0, dtype=torch.long, device=images.device)  # raised the loss since the last checkpoint
        self.halved = flag  # step size halved at the last checkpoint
        self.zero_grad = flag  # no step had a gradient so far

    def enter(self, index: list[int], restart: list[int], start: Tensor) -> None:
        """Add samples, each at its `start` point."""
        count, x = len(index), self.images[index]
        lowest = x.new_full((count,), -torch.inf)
        yes = torch.ones(count, dtype=torch.bool, device=x.device)
        self.index += index
        self.restart += restart
        self.done += [0] * count
        self._append(
            x=x,
            x_adv=start,
            x_previous=start,
            gradient=torch.zeros_like(x),
            x_best=start,
            gradient_best=torch.zeros_like(x),
            loss_best=lowest,
            loss_best_at_check=lowest,
            # AutoAttack compares the first step with 0, not with the loss of the start point.
            loss_last=x.new_zeros(count),
            step_size=x.new_full((count, 1, 1, 1), self.first_step_size),
            rises=torch.zeros(count, dtype=torch.long, device=x.device),
            halved=yes,  # so that the first checkpoint applies condition 1 alone
            zero_grad=yes,
        )

    def keep(self, mask: Tensor) -> None:
        """Drop the samples where `mask` is false."""
        rows = mask.nonzero().flatten()
        for name in ("index", "restart", "done"):
            values = getattr(self, name)
            setattr(self, name, [values[row] for row in rows.tolist()])
        for name, value in self._tensors().items():
            setattr(self, name, value[rows])

    def step(self, eps: float, norm: Norm) -> None:
        """One projected gradient step with momentum, except in a sample's first step, which has none yet."""
        if not self.index:
            return
        momentum = _wide(self._by_sample([_MOMENTUM if done else 1.0 for done in self.done]))
        self.zero_grad = self.zero_grad & (self.gradient == 0).flatten(1).all(dim=1)
        drift = self.x_adv - self.x_previous
        ahead = self.x_adv + self.step_size * ascent_direction(self.gradient, norm)
        ahead = project(ahead, self.x, eps, norm)
        ahead = self.x_adv + (ahead - self.x_adv) * momentum + drift * (1 - momentum)
        self.x_previous = self.x_adv
        self.x_adv = project(ahead, self.x, eps, norm)
        self.done = [done + 1 for done in self.done]

    def record(self, loss: Tensor, gradient: Tensor) -> None:
        """Take in the loss and gradient of x_adv; only a strictly better point replaces the best one."""
        better = loss > self.loss_best
        self.gradient = gradient
        self.x_best = torch.where(_wide(better), self.x_adv, self.x_best)
        self.gradient_best = torch.where(_wide(better), gradient, self.gradient_best)
        self.loss_best = torch.where(better, loss, self.loss_best)
        moved = self._by_sample([float(done > 0) for done in self.done]).bool()
        self.rises = self.rises + (moved & (loss > self.loss_last))
        self.loss_last = torch.where(moved, loss, self.loss_last)
        self.loss_best_at_check = torch.where(moved, self.loss_best_at_check, loss)

    def checkpoint(self) -> None:
        """Halve step sizes and go back to the best point where the steps since the last checkpoint did not pay.

        Condition 1: no more than rho of them raised the loss. Condition 2: the step size was not halved at
        the last checkpoint and the best loss has not grown since. Samples at no checkpoint are left alone.
        """
        windows = [self.windows.get(done, 0) for done in self.done]
        if not any(windows):
            return
        window = self._by_sample([float(w) for w in windows])
        due = window > 0
        stalled = ~self.halved & (self.loss_best_at_check >= self.loss_best)
        halve = due & ((self.rises <= _RHO * window) | stalled)
        self.halved = torch.where(due, halve, self.halved)
        self.loss_best_at_check = torch.where(due, self.loss_best, self.loss_best_at_check)
        self.rises = torch.where(due, 0, self.rises)
        self.step_size = torch.where(_wide(halve), self.step_size / 2, self.step_size)
        self.x_adv = torch.where(_wide(halve), self.x_best, self.x_adv)
        self.gradient = torch.where(_wide(halve), self.gradient_best, self.gradient)

    def _by_sample(self, values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=self.images.dtype, device=self.images.device)

    def _tensors(self) -> dict[str, Tensor]:
        return {name: v for name, v in vars(self).items() if isinstance(v, Tensor) and name != "images"}

    def _append(self, **rows: Any) -> None:
        for name, value in self._tensors().items():
            setattr(self, name, torch.cat([value, rows[name]]))


def _wide(per_sample: Tensor) -> Tensor:
    return per_sample.view(-1, 1, 1, 1)
