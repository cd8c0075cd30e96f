"""Auto-PGD (Croce & Hein 2020, arXiv 2003.01690), numerically as in AutoAttack, for any loss function."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from attacks.losses import LossFn
from attacks.noise import random_start as start_points
from attacks.noise import sample_seeds
from attacks.norms import Norm, ascent_direction, check_ball, check_images, check_positive, project

SuccessFn = Callable[[Tensor, list[int]], Tensor]
"""`success(x_adv, index) -> bool [len(index)]`: which of these samples are finished."""

_MOMENTUM = 0.75  # weight of the new step against the previous one
_RHO = 0.75  # share of steps that must raise the loss, else the step size is halved


class NotFiniteError(FloatingPointError):
    """A loss or gradient is infinite or no number; `samples` are the places in the batch it belongs to."""

    def __init__(self, what: str, samples: list[int], where: str) -> None:
        super().__init__(
            f"{what} is not finite for samples {samples} at {where}: attack in a wider precision or drop them"
        )
        self.what = what
        self.samples = samples


@dataclass(frozen=True)
class APGDResult:
    """What `apgd` found for each of the B samples.

    x_adv: [B, C, H, W], the images, in the ball and in [0, 1].
    loss: [B], the loss at x_adv, in x's dtype.
    steps: int64 [B], gradient steps spent on the sample, all restarts together.
    zero_grad: bool [B], true where steps were made and each had a gradient of exactly zero: no attack at all.
    succeeded: bool [B], true where `success` was; x_adv is then the point it was said of.
    """

    x_adv: Tensor
    loss: Tensor
    steps: Tensor
    zero_grad: Tensor
    succeeded: Tensor


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


@torch.no_grad()
def apgd(
    loss_fn: LossFn,
    x: Tensor,
    *,
    eps: float,
    steps: int = 100,
    norm: Norm = "Linf",
    random_start: bool = True,
    start: Tensor | None = None,
    step_scale: float = 2.0,
    restarts: int = 1,
    seed: int | Sequence[int] = 0,
    success: SuccessFn | None = None,
) -> APGDResult:
    """Maximise `loss_fn` in the eps ball around each image of `x`, intersected with [0, 1].

    loss_fn: `loss_fn(x, index) -> [len(index)]`, differentiable in x; `index` lists which samples of the
        original batch x holds. A sample's loss must not depend on the others of its batch.
    x: [B, C, H, W] in [0, 1], float32 (float64 works); all state is kept in its dtype, on its device.
    eps: radius in the unit of x, e.g. 4 / 255. norm: "Linf" or "L2".
    steps: gradient steps a restart. step_scale: the first step size, in eps.
    random_start, step_scale: True, 2 is AutoAttack's APGD; False, 1 the one of the FARE evaluation.
    start: [B, C, H, W], points to begin from in place of the clean images (with random_start=False), brought
        into the ball first.
    seed: an int or one per sample; an int s stands for s, s + 1, ... . A sample's noise is a function of its
        own seed and the restart's number (0, 1, ...), whatever the batch.
    success: asked at the start point and after each step about the new points. A finished sample keeps the
        point that succeeded as its x_adv and leaves the batch, so that `index` shrinks. Where the
        start is another the clean image is not asked about.

    Each sample has its own step size and best point, and the result is its best point over all restarts. The
    clean image competes too, at one more loss evaluation when the start is another, so no loss is lower than
    the clean one; a sample that succeeded is the exception, its loss is the one at the successful point.

    Raises ValueError for bad arguments or a loss of the wrong shape or without a gradient path to x, and
    NotFiniteError, naming the samples, for a loss or gradient that is not finite.
    """
    check_images(x)
    check_ball(eps, norm)
    check_positive("step_scale", step_scale)
    steps, restarts = _count("steps", steps), _count("restarts", restarts)
    if restarts > 1 and not random_start:
        raise ValueError("restarts > 1 needs random_start=True: without noise every restart is the same")
    if start is not None:
        if random_start:
            raise ValueError("start and random_start=True exclude each other: choose one")
        if start.shape != x.shape or not bool(start.isfinite().all()):
            raise ValueError(f"start must be finite and shaped as x, {tuple(x.shape)}, got {tuple(start.shape)}")
    seeds = sample_seeds(seed, len(x))

    x = x.detach()
    best = APGDResult(
        x_adv=x.clone(),
        loss=x.new_full((len(x),), -torch.inf),
        steps=torch.zeros(len(x), dtype=torch.long, device=x.device),
        zero_grad=torch.ones(len(x), dtype=torch.bool, device=x.device),
        succeeded=torch.zeros(len(x), dtype=torch.bool, device=x.device),
    )
    if random_start or start is not None:
        everyone = list(range(len(x)))
        best.loss.copy_(_loss_and_gradient(loss_fn, x, everyone, "the clean images", gradient=False)[0])
    for restart in range(restarts):
        rows = (~best.succeeded).nonzero().flatten()
        index: list[int] = rows.tolist()
        if not index:
            break
        centre = x[rows]
        first = centre
        if random_start:
            own = [seeds[i] for i in index]
            first = start_points(centre, eps=eps, norm=norm, seeds=own, restart=restart)
        elif start is not None:
            first = project(start[rows].to(centre), centre, eps, norm)
        state = _State.begin(centre, first, index, step_scale * eps)
        found = _climb(state, loss_fn, success, eps=eps, steps=steps, norm=norm)
        better = found.succeeded | (found.loss > best.loss[rows])
        best.x_adv[rows[better]] = found.x_adv[better]
        best.loss[rows[better]] = found.loss[better]
        best.succeeded[rows] = found.succeeded
        best.steps[rows] += found.steps
        best.zero_grad[rows] &= found.zero_grad
    best.zero_grad.logical_and_(best.steps > 0)
    return best


@dataclass
class _State:
    """What APGD remembers of the samples still in the batch; every tensor has them in its first dimension."""

    row: Tensor  # place among the samples the climb began with
    index: list[int]  # place in the caller's batch
    x: Tensor  # the clean images, centres of the balls
    x_adv: Tensor
    x_previous: Tensor  # x_adv before the last step, for the momentum
    gradient: Tensor  # at x_adv
    x_best: Tensor
    gradient_best: Tensor
    loss_best: Tensor
    loss_best_at_check: Tensor  # loss_best at the last checkpoint
    step_size: Tensor  # [b, 1, 1, 1]
    halved: Tensor  # bool: step size halved at the last checkpoint
    rises: Tensor  # steps since the last checkpoint that raised the loss
    loss_last: Tensor  # loss after the last step
    zero_grad: Tensor  # bool: no step had a gradient so far

    @classmethod
    def begin(cls, x: Tensor, start: Tensor, index: list[int], step_size: float) -> "_State":
        lowest = x.new_full((len(x),), -torch.inf)
        yes = torch.ones(len(x), dtype=torch.bool, device=x.device)
        return cls(
            row=torch.arange(len(x), device=x.device),
            index=index,
            x=x,
            x_adv=start,
            x_previous=start,
            gradient=torch.zeros_like(x),
            x_best=start,
            gradient_best=torch.zeros_like(x),
            loss_best=lowest,
            loss_best_at_check=lowest,
            step_size=x.new_full((len(x), 1, 1, 1), step_size),
            halved=yes,  # so that the first checkpoint applies condition 1 alone
            rises=torch.zeros(len(x), dtype=torch.long, device=x.device),
            # AutoAttack compares the first step with 0, not with the loss of the start point.
            loss_last=x.new_zeros(len(x)),
            zero_grad=yes,
        )

    def keep(self, mask: Tensor) -> None:
        """Drop the samples where `mask` is false."""
        self.index = [i for i, kept in zip(self.index, mask.tolist(), strict=True) if kept]
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                setattr(self, field.name, value[mask])

    def record(self, loss: Tensor, gradient: Tensor) -> None:
        """Take in the loss and gradient of x_adv; only a strictly better point replaces the best one."""
        better = loss > self.loss_best
        self.gradient = gradient
        self.x_best = torch.where(_wide(better), self.x_adv, self.x_best)
        self.gradient_best = torch.where(_wide(better), gradient, self.gradient_best)
        self.loss_best = torch.where(better, loss, self.loss_best)

    def step(self, eps: float, norm: Norm, momentum: float) -> None:
        """One projected gradient step with momentum."""
        self.zero_grad = self.zero_grad & (self.gradient == 0).flatten(1).all(dim=1)
        drift = self.x_adv - self.x_previous
        ahead = self.x_adv + self.step_size * ascent_direction(self.gradient, norm)
        ahead = project(ahead, self.x, eps, norm)
        ahead = self.x_adv + (ahead - self.x_adv) * momentum + drift * (1 - momentum)
        self.x_previous = self.x_adv
        self.x_adv = project(ahead, self.x, eps, norm)

    def checkpoint(self, window: int) -> None:
        """Halve step sizes and go back to the best point where the last `window` steps did not pay.

        Condition 1: no more than rho of them raised the loss. Condition 2: the step size was not halved at
        the last checkpoint and the best loss has not grown since.
        """
        stalled = ~self.halved & (self.loss_best_at_check >= self.loss_best)
        self.halved = (self.rises <= _RHO * window) | stalled
        self.loss_best_at_check = self.loss_best
        self.rises = torch.zeros_like(self.rises)
        self.step_size = torch.where(_wide(self.halved), self.step_size / 2, self.step_size)
        self.x_adv = torch.where(_wide(self.halved), self.x_best, self.x_adv)
        self.gradient = torch.where(_wide(self.halved), self.gradient_best, self.gradient)


def _climb(
    state: _State, loss_fn: LossFn, success: SuccessFn | None, *, eps: float, steps: int, norm: Norm
) -> APGDResult:
    """One run of APGD from the state's start points; the result has a row for each sample it began with."""
    count = len(state.index)
    out = APGDResult(
        x_adv=state.x_adv.clone(),
        loss=torch.zeros_like(state.loss_best),
        steps=torch.zeros(count, dtype=torch.long, device=state.x.device),
        zero_grad=torch.zeros(count, dtype=torch.bool, device=state.x.device),
        succeeded=torch.zeros(count, dtype=torch.bool, device=state.x.device),
    )

    def leave(mask: Tensor, x_adv: Tensor, loss: Tensor, done: int, succeeded: bool) -> None:
        rows = state.row[mask]
        out.x_adv[rows] = x_adv[mask]
        out.loss[rows] = loss[mask]
        out.steps[rows] = done
        out.zero_grad[rows] = state.zero_grad[mask]
        out.succeeded[rows] = succeeded
        state.keep(~mask)

    checks = checkpoints(steps)
    windows = {at: at - before for before, at in zip([0, *checks], checks, strict=False)}
    for done in range(steps + 1):
        if done:
            state.step(eps, norm, _MOMENTUM if done > 1 else 1.0)
        # No step follows the last point: its gradient would be a backward pass for nothing.
        loss, gradient = _loss_and_gradient(loss_fn, state.x_adv, state.index, f"step {done}", gradient=done < steps)
        state.record(loss, gradient)
        if done:
            state.rises = state.rises + (loss > state.loss_last)
            state.loss_last = loss
        else:
            state.loss_best_at_check = loss
        if success is not None:
            finished = _ask(success, state.x_adv, state.index)
            if bool(finished.any()):
                leave(finished, state.x_adv, loss, done, True)
                if not state.index:
                    return out
        if done in windows:
            state.checkpoint(windows[done])
    leave(torch.ones_like(state.halved), state.x_best, state.loss_best, steps, False)
    return out


def _loss_and_gradient(
    loss_fn: LossFn, x: Tensor, index: list[int], where: str, *, gradient: bool
) -> tuple[Tensor, Tensor]:
    """Losses [b] and their gradient (zeros when not asked for) at `x`, both finite, in x's dtype."""
    with torch.enable_grad():
        point = x.detach().requires_grad_()
        loss = loss_fn(point, list(index))
    if not isinstance(loss, Tensor) or loss.shape != (len(index),):
        shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"loss_fn must return one loss per sample, shape ({len(index)},), got {shape}")
    _require_finite(loss.detach()[:, None], "loss", index, where)
    if not gradient:
        return loss.detach().to(x), torch.zeros_like(x)
    slope = None
    if loss.requires_grad:
        # grad of x alone: nothing accumulates on a model's parameters
        (slope,) = torch.autograd.grad(loss, point, torch.ones_like(loss), allow_unused=True)
    if slope is None:
        raise ValueError("loss_fn's result has no gradient path to x: was it detached on the way?")
    _require_finite(slope, "gradient", index, where)
    return loss.detach().to(x), slope


def _require_finite(values: Tensor, name: str, index: list[int], where: str) -> None:
    good = values.isfinite().flatten(1).all(dim=1)
    if not bool(good.all()):
        bad = [i for i, fine in zip(index, good.tolist(), strict=True) if not fine]
        raise NotFiniteError(name, bad, where)


def _ask(success: SuccessFn, x: Tensor, index: list[int]) -> Tensor:
    finished = torch.as_tensor(success(x, list(index)), device=x.device)
    if finished.shape != (len(index),) or finished.dtype != torch.bool:
        raise ValueError(
            f"success must return bool, shape ({len(index)},), got {finished.dtype}, {tuple(finished.shape)}"
        )
    return finished


def _wide(per_sample: Tensor) -> Tensor:
    return per_sample.view(-1, 1, 1, 1)


def _count(name: str, value: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise ValueError(f"{name} must be an integer >= 1, got {value!r}")
    return number
