"""The photographs that photo-clip is trained on, as one array, and how they are varied.

`python -m tools.embedded.photos DIR` lays the unpacked archives in DIR out: train, choosing, val, cifar10-named.
"""

from __future__ import annotations

import argparse
import math
import shutil
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
NAMED = ("automobile", "bird", "cat", "dog", "frog")
"""CIFAR-10's classes that a training text names, as the general word for some class."""


@dataclass
class Photos:
    """`images` uint8 [N, SIDE, SIDE, 3]; `classes` int64 [N], numbers of `names`."""

    images: np.ndarray
    classes: np.ndarray
    names: list[str]


def lay_out(root: Path) -> None:
    """Move the last photos of every class from `root`/train to `root`/choosing; doing it again changes nothing.

    `root`: what the archives hold, train, val and cifar10, and classnames.json, which goes to each part. The folder
    cifar10-named gets links to the classes of NAMED.
    """
    parts = [root / name for name in ("train", "choosing", "val")]
    for folder, images in class_folders(parts[0]).items():
        target = parts[1] / folder
        if not target.exists():
            target.mkdir(parents=True)
            for path in _by_number(images)[-CHOOSING:]:
                path.rename(target / path.name)
    for part in parts:
        shutil.copyfile(root / "classnames.json", part / "classnames.json")
    (root / "cifar10-named").mkdir(exist_ok=True)
    for name in NAMED:
        link = root / "cifar10-named" / name
        if not link.exists():
            link.symlink_to(Path("..") / "cifar10" / name)


def read(folder: Path) -> Photos:
    """The photos of one part. Raises UserError where `folder` holds no class folders."""
    parts = {key: _by_number(images) for key, images in class_folders(folder).items()}
    names = named_classes(folder, list(parts))
    images = [_pixels(path) for files in parts.values() for path in files]
    classes = [number for number, files in enumerate(parts.values()) for _ in files]
    return Photos(np.stack(images), np.array(classes), [names[key] for key in parts])


def _by_number(images: list[tuple[str, Path]]) -> list[Path]:
    """9.jpg before 10.jpg."""
    return [path for _, path in sorted(images, key=lambda image: (len(image[1].stem), image[1].stem))]


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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="holds train, val, cifar10 and classnames.json")
    lay_out(parser.parse_args().folder)
