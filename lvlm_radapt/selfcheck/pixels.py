"""Pixels: those of transformers' own PIL image processor, and how far its torchvision backend is from them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.utils import is_torchvision_available

from lvlm_radapt.selfcheck.result import Check, Skipped, checked
from lvlm_radapt.selfcheck.trial import Trial

NAMES = ("pixels", "torchvision")
_NO_DIFFERENCE = 1e-3
"""Levels of 255: a GPU may divide in another order."""


def check_pixels(trial: Trial) -> Iterator[Check]:
    given = {"images": [trial.image], "return_tensors": "pt", **trial.model.processing}
    stock = pil_processor(trial)(**given)["pixel_values"]
    most, mean = _levels(trial, stock)
    height, width = trial.batch.x.shape[-2:]
    if most is None:
        equal = "are of other sizes"
    else:
        equal = "are equal, bit for bit" if most == 0 else f"differ by up to {most:.3g} of 255 levels"
    said = f"ours and those of transformers' PIL processor {equal}, on a canvas of {width}x{height}"
    ok = most is not None and most <= _NO_DIFFERENCE
    yield checked("pixels", ok, said, largest_levels=most, mean_levels=mean)
    if not is_torchvision_available():
        raise Skipped("it is not installed, so no program here resizes images with it")
    stock = _processor(trial, "torchvision")(**given)["pixel_values"]
    most, mean = _levels(trial, stock)
    if most is None or mean is None:
        raise Skipped("it gives another canvas")
    said = (
        f"a program that resizes with it gives this model pixels up to {most:.1f} of 255 levels from PIL's, "
        f"{mean:.2f} on average"
    )
    yield checked("torchvision", True, said, largest_levels=most, mean_levels=mean)


def pil_processor(trial: Trial) -> Any:
    return _processor(trial, "pil")


def _processor(trial: Trial, backend: str) -> Any:
    if trial.source is None:
        raise Skipped(trial.no_source)
    if trial.model.max_pixels is not None:
        raise Skipped(f"it is opened with at most {trial.model.max_pixels:,} pixels, a limit of its user's")
    try:
        return transformers.AutoImageProcessor.from_pretrained(trial.source, backend=backend)
    except ImportError as error:  # some versions open none at all
        raise Skipped("this transformers opens no image processor without torchvision: install it") from error


def _levels(trial: Trial, stock: Tensor) -> tuple[float, float] | tuple[None, None]:
    """(largest, mean) difference of the normalised pixels, in 8-bit levels; None where even the sizes differ."""
    ours = trial.model.pixel_values(trial.batch).cpu().double()
    if ours.numel() != stock.numel():
        return None, None
    apart = (ours - stock.reshape(ours.shape).double()).abs() * 255
    std = torch.tensor(trial.model.image_std, dtype=torch.float64)
    if ours.ndim == 2:  # rows of patches, a colour after the other
        scaled = apart.unflatten(-1, (3, -1)) * std[:, None]
    elif ours.shape[-3] == 3:  # images, a plane each
        scaled = apart * std.view(3, 1, 1)
    else:  # rows of patches, the colours of each pixel together
        scaled = apart.unflatten(-1, (-1, 3)) * std
    return float(scaled.max()), float(scaled.mean())
