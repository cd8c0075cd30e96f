"""Plain projected gradient ascent (Madry et al. 2018, arXiv 1706.06083): a fixed step, no momentum."""

from collections.abc import Sequence

import torch
from torch import Tensor

from attacks.apgd import APGDResult, SuccessFn, loss_and_gradient, not_finite, on_workers
from attacks.auto_batch import AutoBatch
from attacks.losses import LossFn
from attacks.noise import random_start as start_points
from attacks.noise import sample_seeds
from attacks.norms import Norm, ascent_direction, check_ball, check_images, check_positive, project


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
    workers: int = 1,
) -> APGDResult:
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
    if workers > 1:

        def part(rows: list[int], loss_fn: LossFn, success: SuccessFn | None) -> APGDResult:
            own_seeds = [seeds[i] for i in rows]
            return pgd(
                loss_fn,
                x[rows],
                eps=eps,
                step_size=step_size,
                steps=steps,
                norm=norm,
                random_start=random_start,
                seed=own_seeds,
                success=success,
            )

        return on_workers(part, loss_fn, success, len(x), min(workers, len(x)))

    x = x.detach()
    here = start_points(x, eps=eps, norm=norm, seeds=seeds) if random_start else x.clone()
    out = APGDResult(
        x_adv=x.clone(),
        loss=x.new_full((len(x),), -torch.inf),
        steps=torch.zeros(len(x), dtype=torch.long, device=x.device),
        zero_grad=torch.ones(len(x), dtype=torch.bool, device=x.device),
        succeeded=torch.zeros(len(x), dtype=torch.bool, device=x.device),
        failed=[None] * len(x),
    )
    rows = torch.arange(len(x), device=x.device)
    auto_batch = AutoBatch()
    for done in range(steps + 1):
        loss, gradient = loss_and_gradient(
            loss_fn, here[rows], rows.tolist(), gradient=done < steps, auto_batch=auto_batch
        )
        broken = not_finite(loss, gradient)
        for i, reason in zip(rows.tolist(), broken, strict=True):
            out.failed[i] = reason and f"{reason} at step {done}"
        sound = torch.tensor([reason is None for reason in broken], device=x.device)
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
    out.loss[out.loss.isinf()] = torch.nan
    return out
