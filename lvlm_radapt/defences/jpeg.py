"""JPEG compression of the input (Dziugaite et al. 2016, arXiv 1608.00853), attacked straight through (BPDA)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lvlm_radapt.defences.base import Defence, Gradient
from lvlm_radapt.utils.errors import UserError


@dataclass(frozen=True)
class Jpeg(Defence):
    """The image is rounded to 8 bits, compressed and read back, by Pillow with its usual chroma subsampling."""

    name: ClassVar[str] = "jpeg"
    gradient: ClassVar[Gradient] = "bpda"

    quality: int = 75
    """Of libjpeg, 1 to 95; lower compresses more. 75 is the usual one."""

    def __post_init__(self) -> None:
        if type(self.quality) is not int or not 1 <= self.quality <= 95:
            raise UserError(f"quality is {self.quality!r}: give a whole number from 1 to 95")

    def pixels(self, x: Tensor, seeds: Sequence[int]) -> Tensor:
        images = (x.clamp(0, 1) * 255).round().to("cpu", torch.uint8).permute(0, 2, 3, 1).numpy()
        read = np.stack([self._compressed(image) for image in images])
        return (torch.from_numpy(read).permute(0, 3, 1, 2).to(x) / 255).contiguous()

    def _compressed(self, image: np.ndarray) -> np.ndarray:
        """uint8 [H, W, 3]: what is left of such an image."""
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=self.quality)
        return np.asarray(Image.open(file))
