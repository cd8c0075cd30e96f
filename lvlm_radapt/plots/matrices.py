"""Matrices as pictures: similarity of layers, and what happened to a spectrum."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from lvlm_radapt.plots.axes import TEXT, axes_or_new, colour_bar, spectrum_extent
from lvlm_radapt.utils.errors import UserError


def cka_heatmap(
    matrix: Any, ax: Axes | None = None, *, x_label: str = "layer of the robust tower", y_label: str = "layer"
) -> Axes:
    """Similarity (CKA) of the layers of two towers.

    matrix: [layers of one tower, layers of the other], each in [0, 1] up to rounding: 1 says the same of all images.
    x_label, y_label: what columns and rows are. The colours always span 0 to 1, so that pictures compare.
    ax: where to draw; None makes a new pyplot figure. Returns the axes; the first layer is at the lower left.
    Raises UserError for another shape and for values that are not finite or outside [0, 1].
    """
    values = _matrix(matrix, "a CKA matrix")
    if values.min() < -1e-3 or values.max() > 1 + 1e-3:
        raise UserError(f"a CKA lies in [0, 1], these values run from {values.min():.3g} to {values.max():.3g}")
    axes = axes_or_new(ax, 4.6, 3.9)
    shown = axes.imshow(values, origin="lower", cmap="magma", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.tick_params(colors=TEXT, length=0)
    colour_bar(axes.figure, axes, shown, "CKA")
    return axes


def spectral_shift(map: Any, ax: Axes | None = None) -> Axes:
    """Where in the spectrum the patch-embedding kernels of a robust tower are stronger (red) or weaker (blue).

    map: [H, W], mean magnitude of the kernels' Fourier transform in the robust tower minus that in the standard one,
    frequency 0 in the middle as `numpy.fft.fftshift` puts it. The colours are symmetric around 0.
    ax: where to draw; None makes a new pyplot figure. Returns the axes, in cycles per patch.
    Raises UserError for another shape and for values that are not finite.
    """
    values = _matrix(map, "a spectral shift map")
    axes = axes_or_new(ax, 4.4, 3.6)
    limit = float(np.abs(values).max()) or 1.0
    shown = axes.imshow(
        values,
        origin="lower",
        extent=spectrum_extent(values.shape, values.shape),
        cmap="RdBu_r",
        vmin=-limit,
        vmax=limit,
        interpolation="nearest",
    )
    axes.set_xlabel("horizontal, cycles per patch")
    axes.set_ylabel("vertical, cycles per patch")
    axes.tick_params(colors=TEXT, length=0)
    colour_bar(axes.figure, axes, shown, "mean magnitude, robust minus standard")
    return axes


def _matrix(values: Any, what: str) -> NDArray[np.float64]:
    matrix = np.asarray(values, dtype=np.float64)
    if matrix.ndim != 2 or not matrix.size or not np.isfinite(matrix).all():
        raise UserError(f"{what} must be [rows, columns] of finite numbers, this one is {list(matrix.shape)}")
    return matrix
