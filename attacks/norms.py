"""Geometry of the attack's ball and box; batches are [B, C, H, W] and samples never mix."""

import math
from numbers import Real
from typing import Literal, get_args

import torch
from torch import Tensor

Norm = Literal["Linf", "L2"]

_TINY = 1e-12  # AutoAttack's guard against division by zero


def check_images(x: Tensor) -> None:
    """Raise ValueError unless `x` is a float32 or float64 batch [B >= 1, C, H, W] with values in [0, 1]."""
    if not isinstance(x, Tensor) or x.dtype not in (torch.float32, torch.float64):
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x must be a float32 or float64 tensor, got {kind}")
    if x.ndim != 4 or x.numel() == 0:
        raise ValueError(f"x must be a non-empty batch [B, C, H, W], got shape {tuple(x.shape)}")
    if not bool(((x >= 0) & (x <= 1)).all()):
        raise ValueError("x must lie in [0, 1] and hold no NaN: attack images before normalisation")


def check_ball(eps: float, norm: str) -> None:
    """Raise ValueError unless `eps` is a finite number > 0 and `norm` a known norm."""
    check_positive("eps", eps)
    if norm not in get_args(Norm):
        raise ValueError(f"norm must be one of {', '.join(get_args(Norm))}, got {norm!r}")


def check_positive(name: str, value: float) -> None:
    """Raise ValueError unless `value` is a finite number > 0."""
    if not isinstance(value, Real) or not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name} must be a finite number > 0, got {value!r}")


def length(v: Tensor, norm: Norm) -> Tensor:
    """Norm of each sample of `v` [B, C, H, W], as [B, 1, 1, 1]."""
    if norm == "Linf":
        return v.abs().amax(dim=(1, 2, 3), keepdim=True)
    # One reduction a sample: over a whole batch torch may sum in an order that depends on the batch size.
    return torch.stack([(one**2).sum().sqrt() for one in v]).view(-1, 1, 1, 1)


def unit(v: Tensor, norm: Norm) -> Tensor:
    """Each sample of `v` [B, C, H, W] scaled to norm 1; an all-zero sample stays zero."""
    return v / (length(v, norm) + _TINY)


def ascent_direction(gradient: Tensor, norm: Norm) -> Tensor:
    """Steepest ascent of unit size along `gradient` [B, C, H, W]: its sign (Linf) or itself at norm 1 (L2); zero stays
    zero."""
    if norm == "Linf":
        return gradient.sign()
    # Scaled first, so that the squares of a vanishing gradient don't underflow and stop the attack silently.
    largest = length(gradient, "Linf")
    return unit(gradient / torch.where(largest > 0, largest, torch.ones_like(largest)), "L2")


def project(z: Tensor, x: Tensor, eps: float, norm: Norm) -> Tensor:
    """`z` brought into the ball of radius `eps` around `x`, then into [0, 1]; x in [0, 1] keeps both true."""
    if norm == "Linf":
        return torch.minimum(torch.maximum(z, x - eps), x + eps).clamp(0.0, 1.0)
    delta = z - x
    size = length(delta, norm)
    return (x + delta / (size + _TINY) * size.clamp(max=eps)).clamp(0.0, 1.0)


def at_rim(z: Tensor, x: Tensor, eps: float, norm: Norm) -> Tensor:
    """The points of the directions from `x` to `z` that are `eps` away from x, then brought into [0, 1]."""
    return (x + eps * unit(z - x, norm)).clamp(0.0, 1.0)
