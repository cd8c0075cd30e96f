"""From the attacker's real-valued canvas to the 8-bit image that is scored, without leaving the eps ball."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.norms import Norm

_TOLERANCE = 1e-4  # of an 8-bit level: x + eps in float32 falls a few ulp short of the level it means


def to_8bit(x_adv: Tensor, x: Tensor, *, eps: float, norm: Norm) -> Tensor:
    """uint8 [B,3,H,W] next to `x_adv` and within `eps` of `x`, whatever eps is.

    Linf: rounded to the nearest level inside the ball; for eps = k/255 that is plain rounding. L2: every
    value is rounded towards the clean one, so that no perturbation grows. `x`: clean images, levels / 255.
    """
    levels, clean = x_adv.double() * 255, (x.double() * 255).round()
    if norm == "Linf":
        reach = eps * 255 + _TOLERANCE
        levels = torch.minimum(torch.maximum(levels.round(), (clean - reach).ceil()), (clean + reach).floor())
    else:
        delta = levels - clean
        levels = clean + delta.sign() * (delta.abs() + _TOLERANCE).floor()
    return levels.clamp(0, 255).to(torch.uint8)


def from_8bit(pixels: Tensor) -> Tensor:
    """float32 in [0, 1], exactly as the stock image processors rescale 8-bit values."""
    return (pixels.double() / 255).float()
