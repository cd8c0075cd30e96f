"""Ascent for images that are to fool other models: momentum, and a random crop of the image at every step.

Momentum: Dong et al. 2018, arXiv 1710.06081. Crops at every step: M-Attack, Li et al. 2025, arXiv 2503.10635.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from attacks.noise import random_start as start_points
from attacks.noise import sample_seeds
from attacks.norms import Norm, ascent_direction, check_ball, check_images, check_positive, project

StepLoss = Callable[[Tensor, int], Tensor]
"""`loss(x, step) -> [B]`, differentiable in x [B, C, H, W]; it may differ from step to step, as random crops do."""


@torch.no_grad()
def transfer_ascent(
    losses: Sequence[StepLoss],
    x: Tensor,
    *,
    eps: float,
    step_size: float,
    steps: int,
    norm: Norm = "Linf",
    momentum: float = 1.0,
    seed: int | Sequence[int] = 0,
) -> Tensor:
    """The last point [B, C, H, W] of an ascent of the mean of `losses` in the eps ball around x, within [0, 1].

    A loss that changes with every step has no best point, so the last one counts. Each loss has its backward pass
    alone: together they take no more memory than the largest. Starts at random; `seed` as for `apgd`.

    Raises ValueError for bad arguments.
    """
    check_images(x)
    check_ball(eps, norm)
    check_positive("step_size", step_size)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be an int >= 1, got {steps!r}")
    here = start_points(x, eps=eps, norm=norm, seeds=sample_seeds(seed, len(x)))
    velocity = torch.zeros_like(x)
    for step in range(steps):
        slope = torch.zeros_like(x)
        for loss in losses:
            with torch.enable_grad():
                point = here.clone().requires_grad_()
                (own,) = torch.autograd.grad(loss(point, step).sum(), point)
            slope += own / len(losses)
        size = slope.abs().mean(dim=(1, 2, 3), keepdim=True)
        velocity = momentum * velocity + slope / torch.where(size > 0, size, torch.ones_like(size))
        here = project(here + step_size * ascent_direction(velocity, norm), x, eps, norm)
    return here


def random_crops(x: Tensor, boxes: Tensor) -> Tensor:
    """A part of each image in the size of the whole, differentiable in x [B, C, H, W].

    boxes: float [B, 3], of each part its side as a share of the image's, and where it lies: 0 is the left or upper
    edge, 1 the right or lower one.
    """
    side = boxes[:, 0]
    theta = torch.zeros(len(x), 2, 3, dtype=x.dtype, device=x.device)
    theta[:, 0, 0] = theta[:, 1, 1] = side
    theta[:, :, 2] = (2 * boxes[:, 1:] - 1) * (1 - side).unsqueeze(1)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def draw_boxes(seeds: Sequence[int], step: int, smallest: float) -> Tensor:
    """float64 [B, 3], a box for `random_crops` for each seed at that step: its side from `smallest` to 1, anywhere."""
    found = []
    for seed in seeds:
        generator = torch.Generator().manual_seed((seed + 1_000_003 * step) % 2**63)
        found.append(torch.rand(3, dtype=torch.float64, generator=generator))
    boxes = torch.stack(found)
    boxes[:, 0] = smallest + (1 - smallest) * boxes[:, 0]
    return boxes
