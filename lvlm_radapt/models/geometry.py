"""How CLIP-style image processors lay an image on their canvas (resize, centre crop, optional padding)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from lvlm_radapt.utils.errors import UserError


def clip_canvas(processor: Any, image: Image.Image, *, square: bool = False) -> tuple[int, int]:
    """(H, W) of `clip_canvas_bytes`, from sizes alone. `square`: the image is padded to a square first."""
    height, width = image.height, image.width
    if square or getattr(processor, "do_pad", False):
        height = width = max(height, width)
    if processor.do_resize:
        size = dict(processor.size)
        if size.get("shortest_edge"):
            edge = int(size["shortest_edge"])
            scaled = int(edge * max(height, width) / min(height, width))
            height, width = (scaled, edge) if width <= height else (edge, scaled)
        else:
            height, width = int(size["height"]), int(size["width"])
    if processor.do_center_crop:
        crop = dict(processor.crop_size)
        height, width = int(crop["height"]), int(crop["width"])
    return height, width


def clip_canvas_bytes(processor: Any, image: Image.Image) -> np.ndarray:
    """uint8 [3, H, W]: the stock processor's resize and crop, without its rescale and normalisation."""
    out = processor(images=[image], do_rescale=False, do_normalize=False, return_tensors="np")
    return eight_bit(out["pixel_values"][0])


def eight_bit(values: np.ndarray) -> np.ndarray:
    """`values` as uint8; UserError unless they are three channels of whole numbers from 0 to 255."""
    exact = values.astype(np.uint8)
    if values.ndim != 3 or values.shape[0] != 3 or not np.array_equal(exact, values):
        raise UserError(f"the image processor gave no 8-bit RGB image but {values.dtype} {values.shape}")
    return exact


def pad_to_square(image: Image.Image, mean: Sequence[float]) -> Image.Image:
    """The RGB image centred on a square of the mean colour, int(255 mean), as the original LLaVA does."""
    image = image.convert("RGB")
    side = max(image.size)
    red, green, blue = (int(m * 255) for m in mean)
    square = Image.new("RGB", (side, side), (red, green, blue))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square
