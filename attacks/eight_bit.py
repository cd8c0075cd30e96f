"""From the attacker's real-valued canvas to the 8-bit image that is scored, without leaving the eps ball."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.eps import TOLERANCE, whole_levels
from attacks.norms import Norm


def to_8bit(x_adv: Tensor, x: Tensor, *, eps: float, norm: Norm) -> Tensor:
    """uint8 [B,3,H,W] next to `x_adv` and within `eps` of `x`, whatever eps is.

    Linf: rounded to the nearest level inside the ball; for eps = k/255 that is plain rounding. L2: every value is
    rounded towards the clean one, then those with the largest remainders away from it, as long as the perturbation is
    no longer than before (rounding alone would take most of a small budget). `x`: clean images, levels / 255.
    """
    levels, clean = x_adv.double() * 255, (x.double() * 255).round()
    if norm == "Linf":
        reach = whole_levels(eps)
        levels = torch.minimum(torch.maximum(levels.round(), clean - reach), clean + reach)
    else:
        delta = levels - clean
        levels = clean + delta.sign() * torch.stack([_rounded_size(one, 255 * eps) for one in delta.abs()])
    return levels.clamp(0, 255).to(torch.uint8)


def _rounded_size(size: Tensor, longest: float) -> Tensor:
    """Whole numbers next to `size` (one image's, in levels, >= 0), together no longer than it, nor than `longest`."""
    down = (size + TOLERANCE).floor()
    rest = (size - down).clamp(min=0).flatten()
    allowed = min(float((size**2).sum()), longest**2) - (down**2).sum()
    order = rest.argsort(descending=True, stable=True)
    cost = (2 * down.flatten()[order] + 1).cumsum(0)  # (k + 1)^2 - k^2
    up = torch.zeros_like(rest)
    up[order] = ((cost <= allowed) & (rest[order] > 0)).double()
    return down + up.view_as(down)


def from_8bit(pixels: Tensor) -> Tensor:
    """float32 in [0, 1], exactly as the stock image processors rescale 8-bit values."""
    return (pixels.double() / 255).float()


def distances(pixels: Tensor, x: Tensor) -> list[tuple[float, float]]:
    """(Linf, L2) of each of the uint8 images [B,3,H,W] from the clean ones `x`, levels / 255, in [0, 1] pixel units."""
    delta = (pixels.to(x.device).double() - (x.double() * 255).round()).flatten(1)
    return [(float(one.abs().max()) / 255, float(one.norm()) / 255) for one in delta]
