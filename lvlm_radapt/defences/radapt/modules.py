"""The two interventions as torch modules: Gaussian low-pass on pixels, anchor mix on an attention's output.

This file imports torch alone, so that an exported checkpoint can carry a verbatim copy of it.
"""

from __future__ import annotations

import functools
import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

UNITS = ("px224", "image")
BOUNDARIES = ("reflect", "periodic")
MIXES = ("interpolate", "add")

_SUPPORT = 512  # taps span at least so many pixels: their response is then within 6e-4 of H at ANY frequency


def response(frequency: Tensor, cutoff: float, size: int, unit: str = "px224") -> Tensor:
    """H along one axis, exp(-D^2 / (2 cutoff^2)); the paper's 2-D Gaussian low-pass is the product of two.

    Args:
        frequency: cycles per pixel, |f| <= 0.5, any shape.
        cutoff: D0, above 0, in the unit of D.
        size: the image side along this axis in pixels (matters for unit "image" only).
        unit: "px224", D in cycles per 224 px, or "image", D in cycles per image side.

    Returns:
        A tensor of `frequency`'s shape, values in (0, 1].
    """
    distance = frequency * (224 if unit == "px224" else size)
    return torch.exp(-(distance**2) / (2 * cutoff**2))


def taps(cutoff: float, size: int, unit: str = "px224", boundary: str = "reflect") -> Tensor:
    """One axis of the filter in space: the inverse Fourier transform of H, NOT a sampled Gaussian.

    H does not vanish at the Nyquist frequency (0.18 of the mean at cutoff 60), so the taps alternate in sign
    and decay slowly far out, and a few are negative. The transform is taken over a whole number of the
    periods with which `boundary` continues an axis of `size` pixels, and at least 512 px: every frequency an
    image of that size can hold is then met exactly, any other within 6e-4.

    Args:
        cutoff, size, unit: as in `response`.
        boundary: "reflect" (period 2 size - 2) or "periodic" (period size).

    Returns:
        float64 [2 R + 1], symmetric about its middle, summing to 1.
    """
    period = max(1, 2 * size - 2) if boundary == "reflect" else size
    length = period * math.ceil(_SUPPORT / period)
    index = torch.arange(length, dtype=torch.float64)
    spectrum = response(torch.minimum(index, length - index) / length, cutoff, size, unit)
    wave = torch.fft.ifft(spectrum).real  # [length], its centre at index 0
    reach = length // 2
    half = wave[: reach + 1].clone()
    if length % 2 == 0:
        half[reach] /= 2  # the tap half a length away is reached from both sides: half of it on each
    return torch.cat([half[1:].flip(0), half])


def _fold(kernel: Tensor, size: int, boundary: str) -> Tensor:
    """The filter along an axis as a matrix [size, size]: row i holds the weights of all pixels in output i,
    taps beyond an edge count where the boundary's continuation of the image puts them."""
    reach = len(kernel) // 2
    positions = torch.arange(size)[:, None] + torch.arange(-reach, reach + 1)[None, :]
    if boundary == "reflect":
        period = max(1, 2 * size - 2)
        positions = positions % period
        positions = torch.minimum(positions, period - positions) if size > 1 else positions
    else:
        positions = positions % size
    matrix = torch.zeros(size, size, dtype=kernel.dtype)
    return matrix.scatter_add_(1, positions, kernel.expand(size, -1))


@functools.lru_cache(maxsize=64)
def _cached_change(cutoff: str, size: int, unit: str, boundary: str, device: str, dtype: torch.dtype) -> Tensor:
    # A tensor made in inference mode could never again take part in a backward pass, and a default device
    # or a meta-device context around a model's construction must not reach the taps.
    with torch.inference_mode(False), torch.no_grad():
        with torch.device("cpu"):
            matrix = _fold(taps(float(cutoff), size, unit, boundary), size, boundary)
            matrix -= torch.eye(size, dtype=matrix.dtype)
        return matrix.to(device=device, dtype=dtype)


@torch.compiler.assume_constant_result
def _change(cutoff: str, size: int, unit: str, boundary: str, device: str, dtype: torch.dtype) -> Tensor:
    """The filter along an axis less the identity, [size, size]: what it adds to the image."""
    # Dynamo traces through an lru_cache and would rebuild the matrix in every call: it is a constant.
    return _cached_change(cutoff, size, unit, boundary, device, dtype)


def _no_autocast(device_type: str) -> AbstractContextManager[object]:
    if not torch.amp.is_autocast_available(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


class GaussianFilter(nn.Module):
    """Gaussian low-pass of images in Fourier terms, H(u, v) = exp(-D^2 / (2 cutoff^2)), applied in space.

    Linear, and the identity on constant images, so it commutes with a per-channel normalisation. A few taps
    are slightly negative (see `taps`), so a result may overshoot its input's range by a little; it is not
    clamped. Nothing is stored in the module: the operators are kept by size and device in a cache of this
    file, so moving, copying or meta-initialising a model cannot harm them.

    Args:
        cutoff: D0, above 0 and finite.
        unit: "px224", cycles per 224 px on every canvas, or "image", cycles per side (each axis its own).
        boundary: "reflect" (edge pixel not repeated) or "periodic" (then equal to a product in FFT space).

    Raises:
        ValueError: a setting out of range; at call time, an input that is no floating point [..., H, W].
    """

    def __init__(self, cutoff: float, unit: str = "px224", boundary: str = "reflect") -> None:
        super().__init__()
        if not (math.isfinite(cutoff) and cutoff > 0):
            raise ValueError(f"cutoff is {cutoff}: give a finite number above 0")
        if unit not in UNITS:
            raise ValueError(f"unit is {unit!r}: choose one of {', '.join(UNITS)}")
        if boundary not in BOUNDARIES:
            raise ValueError(f"boundary is {boundary!r}: choose one of {', '.join(BOUNDARIES)}")
        # as text, because compiling with dynamic shapes turns a float attribute into an unknown
        self._cutoff = repr(float(cutoff))
        self.unit = unit
        self.boundary = boundary

    @property
    def cutoff(self) -> float:
        """D0, in `unit`."""
        return float(self._cutoff)

    def forward(self, x: Tensor) -> Tensor:
        """Filters `x` [..., H, W], each image alone, in float32 (float64 if it is); returns `x`'s dtype."""
        if x.dim() < 2 or not x.is_floating_point():
            raise ValueError(f"the filter wants floating point images [..., H, W], not {x.dtype} {tuple(x.shape)}")
        dtype = torch.promote_types(x.dtype, torch.float32)
        # len(range(n)) is n, as a plain int also while compiling with dynamic shapes
        height, width = len(range(x.shape[-2])), len(range(x.shape[-1]))
        settings = (self.unit, self.boundary, str(x.device), dtype)
        rows = _change(self._cutoff, height, *settings)
        columns = _change(self._cutoff, width, *settings)
        # adding the change, whose rows sum to 0, and not applying rows that sum to 1, keeps a constant
        # image constant to the last digits of float32
        with _no_autocast(x.device.type):
            y = x.to(dtype)
            y = y + rows @ y
            y = y + y @ columns.mT
        return y.to(x.dtype)

    def extra_repr(self) -> str:
        return f"cutoff={self.cutoff:g}, unit={self.unit!r}, boundary={self.boundary!r}"


class AnchorMix(nn.Module):
    """Replaces an attention's output r by (1 - alpha) r + alpha A, or by r + alpha A, with a fixed anchor A.

    Args:
        anchor: A, [T, D] with a row per token, or [1, D], one vector for all. Kept as the buffer `anchor`.
        alpha: weight, any finite real; 0 returns r itself.
        mix: "interpolate" or "add".

    Raises:
        ValueError: a setting out of range; at call time, an anchor that does not fit r.
    """

    anchor: Tensor

    def __init__(self, anchor: Tensor, alpha: float, mix: str = "interpolate") -> None:
        super().__init__()
        if anchor.dim() != 2 or not anchor.is_floating_point():
            raise ValueError(f"an anchor is floating point [T, D], not {anchor.dtype} {tuple(anchor.shape)}")
        if not math.isfinite(alpha):
            raise ValueError(f"alpha is {alpha}: give a finite number")
        if mix not in MIXES:
            raise ValueError(f"mix is {mix!r}: choose one of {', '.join(MIXES)}")
        self.register_buffer("anchor", anchor)
        self.alpha = float(alpha)
        self.mix = mix

    def forward(self, r: Tensor, anchor: Tensor | None = None) -> Tensor:
        """Mixes `r` [..., T, D] with `anchor` [T, D], one for each sequence [..., T, D], or [1, D] (None: its own);
        r's shape and dtype."""
        if self.alpha == 0:
            return r
        a = self.anchor if anchor is None else anchor
        if a.shape[-1] != r.shape[-1] or a.shape[-2] not in (1, r.shape[-2]):
            raise ValueError(
                f"the anchor is {tuple(a.shape)}, the attention's output {tuple(r.shape)}: "
                "give an anchor with as many rows as tokens, or one row"
            )
        dtype = torch.promote_types(r.dtype, torch.float32)
        a = a.to(device=r.device, dtype=dtype)
        kept = r.to(dtype) * (1 - self.alpha) if self.mix == "interpolate" else r.to(dtype)
        return (kept + self.alpha * a).to(r.dtype)

    def extra_repr(self) -> str:
        return f"anchor={tuple(self.anchor.shape)}, alpha={self.alpha:g}, mix={self.mix!r}"
