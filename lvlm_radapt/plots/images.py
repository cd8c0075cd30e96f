"""Pictures of images: what an attack changed, and where a tower looks."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from lvlm_radapt.plots.axes import TEXT, axes_or_new, bare
from lvlm_radapt.utils.errors import UserError

DIFFERENCE_GAIN = 16


def difference_image(clean: NDArray[np.uint8], attacked: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 [H, W, 3]: attacked minus clean, times DIFFERENCE_GAIN, around grey 128, clipped to 0..255.

    clean, attacked: uint8 [H, W, 3]; ValueError when their shapes differ.
    """
    if clean.shape != attacked.shape:
        raise ValueError(f"the images differ in shape: {clean.shape} and {attacked.shape}")
    difference = attacked.astype(np.int32) - clean.astype(np.int32)
    return np.clip(128 + DIFFERENCE_GAIN * difference, 0, 255).astype(np.uint8)


def sample_triplet(original: Any, adversarial: Any, ax: Axes | None = None) -> Axes:
    """Original, adversarial image and their difference x16 around grey, side by side on one axes.

    original, adversarial: images of one size; each a PIL image, uint8 [H, W, 3] in 0..255, or floating point
    [H, W, 3] or [3, H, W] in [0, 1] (an array or a tensor, as `PixelBatch.x[0]`), which is rounded to 8 bits as the
    PNG files of a run are.
    ax: where to draw; None makes a new pyplot figure. Returns the axes; it holds three images, each W units wide.
    Raises UserError for images of other shapes or values, and for a pair that differs in size.
    """
    before, after = pixels(original), pixels(adversarial)
    if before.shape != after.shape:
        sizes = " and ".join(f"{image.shape[1]}x{image.shape[0]}" for image in (before, after))
        raise UserError(f"the images differ in size, {sizes}: draw both on the model's canvas")
    height, width = before.shape[:2]
    axes = axes_or_new(ax, 6.4, 0.4 + 6.4 / 3 * height / width)
    gap = max(1, width // 20)
    centres = []
    for place, image in enumerate((before, after, difference_image(before, after))):
        left = place * (width + gap)
        centres.append(left + width / 2)
        axes.imshow(image, extent=(left, left + width, height, 0), interpolation="nearest")
    bare(axes)
    axes.set_xlim(0, 3 * width + 2 * gap)
    axes.set_ylim(height, 0)
    axes.set_xticks(centres, ["original", "adversarial", f"difference \N{MULTIPLICATION SIGN}{DIFFERENCE_GAIN}"])
    axes.tick_params(length=0, colors=TEXT)
    return axes


def attention_map(image: Any, weights: Any, ax: Axes | None = None) -> Axes:
    """An image under the attention its patches get: the brighter a patch stays, the more it is looked at.

    image: as in `sample_triplet`. weights: [rows, columns] of the patch grid in raster order, none negative, in any
    unit: the largest is drawn as 1. One patch covers an equal share of the image.
    ax: where to draw; None makes a new pyplot figure. Returns the axes; its first image is `image`, its second the
    weights over it.
    Raises UserError for weights that are no such grid, are all zero, negative or not finite.
    """
    seen, grid = pixels(image), np.asarray(weights, dtype=np.float64)
    if grid.ndim != 2 or not grid.size or not np.isfinite(grid).all() or grid.min() < 0 or grid.max() == 0:
        raise UserError("attention weights must be a grid [rows, columns] of finite numbers from 0 on, not all 0")
    height, width = seen.shape[:2]
    axes = axes_or_new(ax, 3.4, 3.4 * height / width)
    extent = (0, width, height, 0)
    axes.imshow(seen, extent=extent, interpolation="nearest")
    shown = axes.imshow(grid / grid.max(), extent=extent, cmap="inferno", alpha=0.65, vmin=0, vmax=1)
    shown.set_interpolation("nearest")
    bare(axes)
    return axes


def pixels(image: Any) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] of what `sample_triplet` takes; UserError for what it does not."""
    values = np.asarray(image.convert("RGB") if hasattr(image, "convert") else image)
    if values.ndim == 3 and values.shape[0] == 3 and values.shape[2] != 3:
        values = np.moveaxis(values, 0, 2)
    if values.ndim != 3 or values.shape[2] != 3 or not values.size:
        raise UserError(f"an image must be [H, W, 3] or [3, H, W], this one is {list(values.shape)}")
    if values.dtype == np.uint8:
        return values
    if not np.issubdtype(values.dtype, np.floating) or not (values.min() >= 0 and values.max() <= 1):
        raise UserError("pixels must be uint8 in 0..255 or floating point in [0, 1]")
    return np.rint(values.astype(np.float64) * 255).astype(np.uint8)
