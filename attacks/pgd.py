"""Plain projected gradient ascent (Madry et al. 2018, arXiv 1706.06083): a fixed step, no momentum."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.apgd import SuccessFn
from attacks.losses import LossFn
from attacks.noise import random_start as start_points
from attacks.noise import sample_seeds
from attacks.norms import Norm, ascent_direction, check_ball, check_images, check_positive, project


@dataclass(frozen=True)
class PGDResult:
    """What `pgd` found for each of the B samples; the fields mean what those of `APGDResult` do."""

    x_adv: Tensor
    loss: Tensor
    steps: Tensor
    zero_grad: Tensor
    succeeded: Tensor
    failed: list[str | None]


@torch.no_grad()
def pgd(
    loss_fn: LossFn,
    x: Tensor,
    *,
    eps: float,
    step_size: float,
    steps: int = 100,
    norm: Norm = "Linf",
    random_start: bool = True,
    seed: int | Sequence[int] = 0,
    success: SuccessFn | None = None,
) -> PGDResult:
    """Maximise `loss_fn` in the eps ball around each image of `x` [B, C, H, W], intersected with [0, 1].

    step_size: in the unit of x, e.g. 1 / 255. The rest as for `apgd`; the random start too (Linf: uniform noise
    whose largest entry is +-eps). The result is the best point on the way, not the last one; a finished sample
    (`success`) keeps the point that succeeded and leaves the batch. A sample whose loss or gradient is not finite
    leaves too, with its best point so far (the clean image where there is none) and the reason in `failed`.

    Raises ValueError for bad arguments or a loss without a gradient path to x.
    """
    check_images(x)
    check_ball(eps, norm)
    check_positive("step_size", step_size)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be an int >= 1, got {steps!r}")
    seeds = sample_seeds(seed, len(x))

    x = x.detach()
    here = start_points(x, eps=eps, norm=norm, seeds=seeds) if random_start else x.clone()
    out = PGDResult(
        x_adv=x.clone(),
        loss=x.new_full((len(x),), -torch.inf),
        steps=torch.zeros(len(x), dtype=torch.long, device=x.device),
        zero_grad=torch.ones(len(x), dtype=torch.bool, device=x.device),
        succeeded=torch.zeros(len(x), dtype=torch.bool, device=x.device),
        failed=[None] * len(x),
    )
    rows = torch.arange(len(x), device=x.device)
    for done in range(steps + 1):
        index: list[int] = rows.tolist()
        loss, gradient = _loss_and_gradient(loss_fn, here[rows], index, gradient=done < steps)
        for what, values in (("loss", loss[:, None]), ("gradient", gradient)):
            finite = values.isfinite().flatten(1).all(dim=1)
            for i in rows[~finite].tolist():
                out.failed[i] = out.failed[i] or f"{what} is not finite at step {done}"
        sound = torch.tensor([out.failed[i] is None for i in index], device=x.device)
        rows, loss, gradient = rows[sound], loss[sound], gradient[sound]
        finished = torch.zeros_like(rows, dtype=torch.bool)
        if success is not None and len(rows):
            finished = success(here[rows], rows.tolist()).to(x.device)
        better = finished | (loss > out.loss[rows])
        out.x_adv[rows[better]] = here[rows[better]]
        out.loss[rows[better]] = loss[better]
        out.succeeded[rows] = finished
        rows, gradient = rows[~finished], gradient[~finished]
        if not len(rows) or done == steps:
            break
        out.zero_grad[rows] &= (gradient == 0).flatten(1).all(dim=1)
        out.steps[rows] += 1
        here[rows] = project(here[rows] + step_size * ascent_direction(gradient, norm), x[rows], eps, norm)
    out.zero_grad.logical_and_(out.steps > 0)
    return out


def _loss_and_gradient(loss_fn: LossFn, x: Tensor, index: list[int], *, gradient: bool) -> tuple[Tensor, Tensor]:
    """Losses [b] in x's dtype and their gradient (zeros when not asked for) at `x`."""
    with torch.enable_grad():
        point = x.detach().requires_grad_()
        loss = loss_fn(point, index)
    if loss.shape != (len(index),):
        raise ValueError(f"loss_fn must return one loss per sample, shape ({len(index)},), got {tuple(loss.shape)}")
    if not gradient:
        return loss.detach().to(x), torch.zeros_like(x)
    if not loss.requires_grad:
        raise ValueError("loss_fn's result has no gradient path to x: was it detached on the way?")
    (slope,) = torch.autograd.grad(loss, point, torch.ones_like(loss), allow_unused=True)
    if slope is None:
        raise ValueError("loss_fn's result has no gradient path to x: was it detached on the way?")
    return loss.detach().to(x), slope
