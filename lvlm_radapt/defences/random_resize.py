"""Random resize and pad (Xie et al. 2018, arXiv 1711.01991), attacked through the mean over its draws (EOT)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from lvlm_radapt.defences.base import Defence
from lvlm_radapt.utils.errors import UserError


@dataclass(frozen=True)
class RandomResize(Defence):
    """The image is shrunk to a random size and put at a random place of its own canvas, on a plain ground.

    Xie et al. enlarge 299 px to between 299 and 330 px inside 331 px. A vision tower's canvas is fixed, so that here
    the image shrinks, by the same range: it keeps 90 % or more of its side.
    """

    name: ClassVar[str] = "random-resize"
    random: ClassVar[bool] = True

    smallest: float = 0.9
    """The smallest side, as a share of the canvas's side; above 0 and below 1. Sizes are equally likely."""
    fill: float = 0.0
    """The ground's value, 0 (black) to 1 (white)."""

    def __post_init__(self) -> None:
        if not _is_number(self.smallest) or not 0 < self.smallest < 1:
            raise UserError(f"smallest is {self.smallest!r}: give a share of the side above 0 and below 1")
        if not _is_number(self.fill) or not 0 <= self.fill <= 1:
            raise UserError(f"fill is {self.fill!r}: give a value from 0 to 1")

    def pixels(self, x: Tensor, seeds: Sequence[int]) -> Tensor:
        return torch.stack([self._moved(image, seed) for image, seed in zip(x, seeds, strict=True)])

    def _moved(self, image: Tensor, seed: int) -> Tensor:
        """[3, H, W]: the image as its seed draws it."""
        high, wide = image.shape[-2:]
        size, down, right = torch.rand(3, generator=torch.Generator().manual_seed(seed)).tolist()
        share = self.smallest + (1 - self.smallest) * size
        height, width = max(1, round(share * high)), max(1, round(share * wide))
        top, left = math.floor(down * (high - height + 1)), math.floor(right * (wide - width + 1))
        small = F.interpolate(image[None], size=(height, width), mode="bilinear", antialias=True, align_corners=False)[
            0
        ]
        return F.pad(small, (left, wide - width - left, top, high - height - top), value=self.fill)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
