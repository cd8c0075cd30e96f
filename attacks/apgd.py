"""Auto-PGD (Croce & Hein 2020, arXiv 2003.01690), numerically as in AutoAttack, for any loss function."""

import operator
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from attacks.apgd_state import APGDState, checkpoint_windows
from attacks.auto_batch import AutoBatch
from attacks.losses import LossFn
from attacks.noise import random_start as start_points
from attacks.noise import sample_seeds
from attacks.norms import Norm, check_ball, check_images, check_positive, project
from attacks.threads import map_over_threads

SuccessFn = Callable[[Tensor, list[int]], Tensor]
"""`success(x_adv, index) -> bool [len(index)]`: which of these samples are finished."""


@dataclass(frozen=True)
class APGDResult:
    """What `apgd` found for each of the B samples.

    x_adv: [B, C, H, W], the images, in the ball and in [0, 1].
    loss: [B], the loss at x_adv, in x's dtype; NaN where no loss of the sample was finite.
    steps: int64 [B], gradient steps spent on the sample, all restarts together.
    zero_grad: bool [B], true where steps were made and each had a gradient of exactly zero: no attack at all.
    succeeded: bool [B], true where `success` was; x_adv is then the point it was said of.
    failed: for each sample None, or why its attack ended early: a loss or gradient that is not finite.
    """

    x_adv: Tensor
    loss: Tensor
    steps: Tensor
    zero_grad: Tensor
    succeeded: Tensor
    failed: list[str | None]


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
    batch_size: int | None = None,
    workers: int = 1,
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
        point that succeeded as its x_adv and leaves. Where the start is another the clean image is not asked about.
    batch_size: how many samples `loss_fn` gets at most; None for all. The next sample (or restart) takes the
        place of one that has finished, so that the batch stays full until few are left. Where memory does not
        suffice, each step is made in halves of the batch, in quarters and so on.
    workers: threads among which the samples, the batch and torch's own threads are shared out, for small models
        on a CPU (`cpu_workers`); `loss_fn` and `success` are then called from all of them at once.

    Each sample has its own step size, count of steps and best point, and the result is its best point over all
    restarts. The clean image competes too, at one more loss evaluation when the start is another, so no loss is
    lower than the clean one; a sample that succeeded is the exception, its loss is the one at the successful
    point. A sample whose loss or gradient is not finite leaves with the best point it had, and the others go on.

    Raises ValueError for bad arguments or a loss of the wrong shape or without a gradient path to x.
    """
    check_images(x)
    check_ball(eps, norm)
    check_positive("step_scale", step_scale)
    steps, restarts = _count("steps", steps), _count("restarts", restarts)
    batch_size = len(x) if batch_size is None else _count("batch_size", batch_size)
    if restarts > 1 and not random_start:
        raise ValueError("restarts > 1 needs random_start=True: without noise every restart is the same")
    if start is not None:
        if random_start:
            raise ValueError("start and random_start=True exclude each other: choose one")
        if start.shape != x.shape or not bool(start.isfinite().all()):
            raise ValueError(f"start must be finite and shaped as x, {tuple(x.shape)}, got {tuple(start.shape)}")
    seeds = sample_seeds(seed, len(x))
    workers = min(_count("workers", workers), len(x))
    if workers > 1:

        def part(rows: list[int], loss_fn: LossFn, success: SuccessFn | None) -> APGDResult:
            return apgd(
                loss_fn,
                x[rows],
                eps=eps,
                steps=steps,
                norm=norm,
                random_start=random_start,
                start=None if start is None else start[rows],
                step_scale=step_scale,
                restarts=restarts,
                seed=[seeds[i] for i in rows],
                success=success,
                batch_size=-(-batch_size // workers),
            )

        return on_workers(part, loss_fn, success, len(x), workers)

    x = x.detach()
    auto_batch = AutoBatch()
    best = _Best(x)
    if random_start or start is not None:
        for first in range(0, len(x), batch_size):
            best.clean(loss_fn, list(range(first, min(first + batch_size, len(x)))), auto_batch)

    def begin(sample: int, restart: int) -> Tensor:
        own = x[sample : sample + 1]
        if random_start:
            return start_points(own, eps=eps, norm=norm, seeds=seeds[sample : sample + 1], restart=restart)
        return own if start is None else project(start[sample : sample + 1].to(own), own, eps, norm)

    waiting = deque((sample, 0) for sample in range(len(x)) if best.failed[sample] is None)
    state = APGDState(x, step_scale * eps, checkpoint_windows(steps))
    while waiting or state.index:
        state.step(eps, norm)
        entering = [waiting.popleft() for _ in range(min(batch_size - len(state.index), len(waiting)))]
        if entering:
            state.enter([s for s, _ in entering], [r for _, r in entering], torch.cat([begin(*e) for e in entering]))
        # No step follows a last point: its gradient would be a backward pass for nothing.
        more = any(done < steps for done in state.done)
        loss, gradient = loss_and_gradient(loss_fn, state.x_adv, state.index, gradient=more, auto_batch=auto_batch)
        broken = not_finite(loss, gradient)
        state.record(loss, gradient)
        finished = torch.zeros_like(state.halved) if success is None else _ask(success, state.x_adv, state.index)
        spent = torch.tensor([done == steps for done in state.done], device=x.device)
        leaving = finished | spent | torch.tensor([reason is not None for reason in broken], device=x.device)
        if bool(leaving.any()):
            again = best.take(state, leaving, finished, loss, broken)
            waiting.extend((sample, restart + 1) for sample, restart in again if restart + 1 < restarts)
            state.keep(~leaving)
        state.checkpoint()
    return best.result()


def on_workers(
    attack: Callable[[list[int], LossFn, SuccessFn | None], APGDResult],
    loss_fn: LossFn,
    success: SuccessFn | None,
    count: int,
    workers: int,
) -> APGDResult:
    """`attack(rows, loss_fn, success)` on stretches of range(count), side by side, as one result.

    The functions that `attack` is given number the samples of its own stretch from 0.
    """

    def part(rows: list[int], check: Callable[[], None]) -> APGDResult:
        def own(function: LossFn | SuccessFn, z: Tensor, index: list[int]) -> Tensor:
            check()
            return function(z, [rows[i] for i in index])

        return attack(rows, partial(own, loss_fn), None if success is None else partial(own, success))

    parts = map_over_threads(part, count, workers)
    tensors = ("x_adv", "loss", "steps", "zero_grad", "succeeded")
    return APGDResult(
        **{name: torch.cat([getattr(part, name) for part in parts]) for name in tensors},
        failed=[reason for part in parts for reason in part.failed],
    )


class _Best:
    """The best point of each sample so far."""

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.x_adv = x.clone()
        self.loss = x.new_full((len(x),), -torch.inf)
        self.steps = torch.zeros(len(x), dtype=torch.long, device=x.device)
        self.zero_grad = torch.ones(len(x), dtype=torch.bool, device=x.device)
        self.succeeded = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self.failed: list[str | None] = [None] * len(x)

    def clean(self, loss_fn: LossFn, index: list[int], auto_batch: AutoBatch) -> None:
        """Let these samples' clean images compete."""
        loss, slope = loss_and_gradient(loss_fn, self.x[index], index, gradient=False, auto_batch=auto_batch)
        for sample, reason, value in zip(index, not_finite(loss, slope), loss, strict=True):
            if reason is None:
                self.loss[sample] = value
            else:
                self.failed[sample] = f"{reason} at the clean image"

    def take(
        self, state: APGDState, leaving: Tensor, finished: Tensor, loss: Tensor, broken: Sequence[str | None]
    ) -> list[tuple[int, int]]:
        """Take in the samples that leave; of those that may try again, (sample, restart they have done)."""
        again = []
        for row in leaving.nonzero().flatten().tolist():
            sample, succeeded = state.index[row], bool(finished[row])
            point, value = (state.x_adv, loss) if succeeded else (state.x_best, state.loss_best)
            if succeeded or bool(value[row] > self.loss[sample]):
                self.x_adv[sample] = point[row]
                self.loss[sample] = value[row]
            self.succeeded[sample] = succeeded
            self.steps[sample] += state.done[row]
            self.zero_grad[sample] &= state.zero_grad[row]
            if broken[row] is not None and not succeeded:
                self.failed[sample] = f"{broken[row]} at step {state.done[row]}"
            elif not succeeded:
                again.append((sample, state.restart[row]))
        return again

    def result(self) -> APGDResult:
        loss = torch.where(self.loss.isfinite(), self.loss, torch.nan)
        return APGDResult(self.x_adv, loss, self.steps, self.zero_grad & (self.steps > 0), self.succeeded, self.failed)


def loss_and_gradient(
    loss_fn: LossFn, x: Tensor, index: list[int], *, gradient: bool = True, auto_batch: AutoBatch | None = None
) -> tuple[Tensor, Tensor]:
    """Losses [b] and their gradient (zeros when not asked for) at `x` [b, C, H, W], in x's dtype.

    auto_batch: cuts a batch that does not fit into memory.

    Raises ValueError for losses of the wrong shape or without a gradient path to x.
    """

    def piece(rows: slice) -> tuple[Tensor, Tensor]:
        return _loss_and_gradient(loss_fn, x[rows], index[rows], gradient=gradient)

    losses, slopes = zip(*(auto_batch or AutoBatch()).run(piece, len(index)), strict=True)
    return (losses[0], slopes[0]) if len(losses) == 1 else (torch.cat(losses), torch.cat(slopes))


def _loss_and_gradient(loss_fn: LossFn, x: Tensor, index: list[int], *, gradient: bool) -> tuple[Tensor, Tensor]:
    with torch.set_grad_enabled(gradient):
        point = x.detach().requires_grad_(gradient)
        loss = loss_fn(point, list(index))
    if not isinstance(loss, Tensor) or loss.shape != (len(index),):
        shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"loss_fn must return one loss per sample, shape ({len(index)},), got {shape}")
    if not gradient:
        return loss.detach().to(x), torch.zeros_like(x)
    slope = None
    if loss.requires_grad:
        # grad of x alone: nothing accumulates on a model's parameters
        (slope,) = torch.autograd.grad(loss, point, torch.ones_like(loss), allow_unused=True)
    if slope is None:
        raise ValueError("loss_fn's result has no gradient path to x: was it detached on the way?")
    return loss.detach().to(x), slope


def not_finite(loss: Tensor, gradient: Tensor) -> list[str | None]:
    """By sample None, or what of it is not finite: its loss [b] or its gradient [b, C, H, W]."""
    fine_loss = loss.isfinite().tolist()
    fine_slope = gradient.isfinite().flatten(1).all(dim=1).tolist()
    return [
        None if one and other else f"{'gradient' if one else 'loss'} is not finite"
        for one, other in zip(fine_loss, fine_slope, strict=True)
    ]


def _ask(success: SuccessFn, x: Tensor, index: list[int]) -> Tensor:
    finished = torch.as_tensor(success(x, list(index)), device=x.device)
    if finished.shape != (len(index),) or finished.dtype != torch.bool:
        raise ValueError(
            f"success must return bool, shape ({len(index)},), got {finished.dtype}, {tuple(finished.shape)}"
        )
    return finished


def _count(name: str, value: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise ValueError(f"{name} must be an integer >= 1, got {value!r}")
    return number
