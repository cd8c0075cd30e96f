"""Spectra: of the patch embedding's kernels, and of what an attack adds to images."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lvlm_radapt.towers import Tower
from lvlm_radapt.towers.parts import patch_embedding


@torch.no_grad()
def kernel_spectrum(tower: Tower) -> Tensor:
    """float64 [p, p]: mean magnitude of the 2D Fourier transform of the patch embedding's kernels, over all D kernels
    and 3 colours; row and column are cycles per patch, frequency 0 at (p // 2, p // 2).

    Of a kernel over frames (Qwen) the sum over its frames, since a still image is the same in each.
    """
    weight = patch_embedding(tower).weight.detach().double().cpu()
    if weight.ndim == 5:
        weight = weight.sum(2)
    if weight.ndim == 2:
        side = math.isqrt(weight.shape[1] // 3)
        weight = weight.unflatten(1, (side, side, 3)).movedim(-1, 1)
    return mean_magnitude(weight)


def mean_magnitude(images: Tensor) -> Tensor:
    """float64 [H, W]: |FFT| of [..., H, W] in the orthonormal scaling (white noise of standard deviation s has about
    0.886 s everywhere), its mean over all leading axes, frequency 0 in the centre (H // 2, W // 2)."""
    magnitude = torch.fft.fft2(images.double(), norm="ortho").abs()
    return torch.fft.fftshift(magnitude.flatten(0, -3).mean(0))


def radial_profile(spectrum: Tensor) -> tuple[list[float], list[float]]:
    """(frequencies in cycles per pixel, mean of the spectrum at these): over rings of equal distance to the centre of
    [H, W], as wide as one cycle per image of the shorter side, up to 0.5, where axes end."""
    high, wide = spectrum.shape
    fy = (torch.arange(high) - high // 2).double() / high
    fx = (torch.arange(wide) - wide // 2).double() / wide
    distance = (fy[:, None].square() + fx.square()).sqrt()
    step = 1 / min(high, wide)
    ring = (distance / step).round().long()
    count = int(0.5 / step) + 1
    inside = ring < count
    sums = torch.zeros(count, dtype=torch.float64).index_add_(0, ring[inside], spectrum[inside])
    sizes = torch.zeros(count, dtype=torch.float64).index_add_(0, ring[inside], torch.ones_like(spectrum[inside]))
    return [step * i for i in range(count)], (sums / sizes).tolist()
