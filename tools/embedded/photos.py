"""The photographs that photo-clip is trained on, as one array, and how they are varied."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from lvlm_radapt.utils.class_folders import class_folders, named_classes
from tools.embedded.pool import normalise

SIDE = 64
CHOOSING = 20  # photos of a class, its last ones, that are never trained on: for every choice of a setting


@dataclass
class Photos:
    """`images` uint8 [N, SIDE, SIDE, 3]; `classes` int64 [N], numbers of `names`."""

    images: np.ndarray
    classes: np.ndarray
    names: list[str]


def split(root: Path, *, choosing: bool) -> dict[str, list[Path]]:
    """Class folder -> its photos for choosing, or those for training. `root`: class folders with classnames.json."""
    found = {}
    for folder, images in class_folders(root).items():
        # numbers, not names: 9.jpg comes before 10.jpg
        files = [path for _, path in sorted(images, key=lambda image: (len(image[1].stem), image[1].stem))]
        cut = max(1, len(files) - CHOOSING)
        found[folder] = files[cut:] if choosing else files[:cut]
    return found


def read(root: Path, *, choosing: bool = False) -> Photos:
    """The photos of one part. Raises UserError where `root` holds no class folders."""
    parts = split(root, choosing=choosing)
    names = named_classes(root, list(parts))
    images = [_pixels(path) for files in parts.values() for path in files]
    classes = [number for number, files in enumerate(parts.values()) for _ in files]
    return Photos(np.stack(images), np.array(classes), [names[folder] for folder in parts])


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def vary(images: np.ndarray, side: int, generator: torch.Generator) -> Tensor:
    """Normalised float [B, 3, side, side]: crops of 35 to 100 % of the area, half mirrored, light and colour varied."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    b = len(x)

    def draw(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(b, *shape, generator=generator)

    area, ratio = draw(0.35, 1.0), draw(-1.0, 1.0).mul(math.log(4 / 3) / 2).exp()
    width, height = (area.sqrt() * ratio).clamp(max=1), (area.sqrt() / ratio).clamp(max=1)
    mirror = torch.where(torch.rand(b, generator=generator) < 0.5, -1.0, 1.0)
    theta = torch.zeros(b, 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = width * mirror, draw(-1.0, 1.0) * (1 - width)
    theta[:, 1, 1], theta[:, 1, 2] = height, draw(-1.0, 1.0) * (1 - height)
    grid = F.affine_grid(theta, [b, 3, side, side], align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    x = x * draw(0.8, 1.2, 3, 1, 1) + draw(-0.1, 0.1, 1, 1, 1)
    return normalise(x.clamp(0, 1))
