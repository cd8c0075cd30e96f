"""An attack in the band that a low-pass filter lets through: the perturbation is a small image, enlarged."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from attacks.apgd import apgd
from attacks.losses import LossFn
from attacks.norms import Norm, check_ball, check_images, project


def low_frequency_apgd(
    loss_fn: LossFn,
    x: Tensor,
    *,
    eps: float,
    steps: int = 100,
    factor: int = 4,
    norm: Norm = "Linf",
    restarts: int = 1,
    seed: int | Sequence[int] = 0,
    batch_size: int | None = None,
) -> Tensor:
    """Maximise `loss_fn` over perturbations of at most 1 / (2 factor) cycles a pixel; returns x_adv [B, C, H, W].

    The variable is a perturbation on a grid `factor` times coarser, enlarged bilinearly, then brought into the eps
    ball around x and into [0, 1] (`attacks.norms.project`), inside the loss as at the end: what is optimised is
    what is returned. Bilinear weights are not negative and sum to 1, so that a small image within +-eps stays
    within +-eps (Linf); for L2 the small one's budget is eps / factor, as a pixel of it covers factor^2.

    eps at most 0.5; factor at least 1; other arguments and errors as for `apgd`, with a random start;
    FloatingPointError for a loss or gradient that is not finite.
    """
    check_images(x)
    check_ball(eps, norm)
    if factor < 1:
        raise ValueError(f"factor must be an integer >= 1, got {factor!r}")
    coarse_eps = eps if norm == "Linf" else eps / factor
    if coarse_eps > 0.5:
        raise ValueError(f"eps must be at most 0.5 for a perturbation that is kept around mid-grey, got {eps!r}")
    height, width = x.shape[-2:]
    grey = x.new_full((*x.shape[:2], math.ceil(height / factor), math.ceil(width / factor)), 0.5)

    def enlarged(small: Tensor, clean: Tensor) -> Tensor:
        delta = F.interpolate(small - 0.5, size=(height, width), mode="bilinear", align_corners=False)
        return project(clean + delta, clean, eps, norm)

    found = apgd(
        lambda small, index: loss_fn(enlarged(small, x[index]), index),
        grey,
        eps=coarse_eps,
        steps=steps,
        norm=norm,
        random_start=True,
        restarts=restarts,
        seed=seed,
        batch_size=batch_size,
    )
    if any(reason is not None for reason in found.failed):
        raise FloatingPointError(next(reason for reason in found.failed if reason is not None))
    with torch.no_grad():
        return enlarged(found.x_adv, x)
