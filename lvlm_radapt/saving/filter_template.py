"""The Gaussian low-pass that belongs in front of the checkpoint in this folder; numpy and PIL alone.

The weights know nothing of the filter. transformers, and a server that opens the processor with it, filters by itself:

    processor = AutoProcessor.from_pretrained(FOLDER, trust_remote_code=True)  # image_processing_radapt.py beside this

Any other program must pass every image through `filter_image` before its own preprocessing. An unfiltered image gets
no error, only less protection.

    from radapt_filter import FilteredProcessor, filter_image
    image = filter_image(Image.open("photo.png"))
    processor = FilteredProcessor(processor)  # one that does not filter by itself

The defence filters an image AFTER it was laid on the model's canvas: so this file does that first, by the rule of
the model's image processor (PIL backend), which then finds an image of its own size and leaves it alone. Filtering
the photo at its original size instead is another, weaker or stronger, filter.

`filter_array` is that filter to the last digits of double precision. `filter_image` rounds its result to whole
levels from 0 to 255, as a PNG must: off by at most half a level (0.5/255), and by the overshoot where the filter
leaves that range beside a hard edge, which is cut off. torchvision's resize differs from PIL's, by up to 17 levels of
255 on a photo, but here nothing is left for it to resize. Not covered: images so elongated that their canvas breaks a
Qwen processor's limit of pixels, which it resizes once more; and frames of videos.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from PIL import Image

CUTOFF = 40.0  # D0 of the response exp(-D^2 / (2 D0^2))
UNIT = "px224"  # of D: cycles per 224 px, or "image", cycles per side
BOUNDARY = "reflect"  # how the image goes on past its edge: mirrored, or "periodic"
RESAMPLE = 3  # PIL's number of the resize
CANVAS = "merged"  # how an image is laid on it: in merged patches, or "crop", at one size
FACTOR = 28  # merged: both sides are multiples of it, in pixels
MIN_PIXELS = 3136  # merged: area
MAX_PIXELS = 12845056
EDGE = 0  # crop: length of the shorter side after the resize; 0: both sides are SIZE
SIZE = (0, 0)  # crop: height and width after the resize
CROP = (0, 0)  # crop: height and width that are cut out of the middle; (0, 0): all is kept
PAD = ()  # crop: the colour that images are padded to a square with first; (): they are not


def canvas_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) to which a Qwen's processor resizes an image; ValueError where it refuses one."""
    if max(height, width) > 200 * min(height, width):
        raise ValueError(f"an image of {width}x{height} px is too elongated for this model: crop it")
    high, wide = round(height / FACTOR) * FACTOR, round(width / FACTOR) * FACTOR
    if high * wide > MAX_PIXELS:
        scale = math.sqrt(height * width / MAX_PIXELS)
        high = math.floor(height / scale / FACTOR) * FACTOR
        wide = math.floor(width / scale / FACTOR) * FACTOR
    elif high * wide < MIN_PIXELS:
        scale = math.sqrt(MIN_PIXELS / (height * width))
        high = math.ceil(height * scale / FACTOR) * FACTOR
        wide = math.ceil(width * scale / FACTOR) * FACTOR
    return max(FACTOR, high), max(FACTOR, wide)


def on_canvas(image: Image.Image) -> Image.Image:
    """The image as the model's processor lays it on its canvas, RGB."""
    image = image.convert("RGB")
    if CANVAS == "merged":
        return _resized(image, *canvas_size(image.height, image.width))
    if PAD:
        side = max(image.size)
        square = Image.new("RGB", (side, side), PAD)
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        image = square
    high, wide = SIZE
    if EDGE:
        longer = int(EDGE * max(image.size) / min(image.size))
        high, wide = (longer, EDGE) if image.width <= image.height else (EDGE, longer)
    image = _resized(image, high, wide)
    if CROP == (0, 0):
        return image
    top, left = (image.height - CROP[0]) // 2, (image.width - CROP[1]) // 2
    return image.crop((left, top, left + CROP[1], top + CROP[0]))


def filter_array(image: Image.Image) -> np.ndarray:
    """float64 [H, W, 3] on the canvas, RGB levels 0 to 255, neither rounded nor cut off."""
    return low_pass(low_pass(np.asarray(on_canvas(image), dtype=np.float64), 0), 1)


def filter_image(image: Image.Image) -> Image.Image:
    """The filtered image on the canvas, 8-bit RGB."""
    return Image.fromarray(np.clip(np.rint(filter_array(image)), 0, 255).astype(np.uint8))


class FilteredProcessor:
    """A processor whose images are filtered first; everything else is the processor's own. ValueError for one that
    filters already."""

    def __init__(self, processor: Any) -> None:
        if getattr(getattr(processor, "image_processor", processor), "filters_images", False):
            raise ValueError("this processor filters by itself: take it as it is")
        self._processor = processor

    def __call__(self, images: Any = None, *args: Any, **settings: Any) -> Any:
        if isinstance(images, Image.Image):
            images = filter_image(images)
        elif images is not None:
            images = [filter_image(image) for image in images]
        return self._processor(images, *args, **settings)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)


def _resized(image: Image.Image, high: int, wide: int) -> Image.Image:
    if image.size == (wide, high):
        return image
    return image.resize((wide, high), resample=Image.Resampling(RESAMPLE))


def low_pass(pixels: np.ndarray, axis: int) -> np.ndarray:
    """`pixels`, float64 with three axes, filtered along one of them."""
    pixels = np.moveaxis(pixels, axis, 0)
    size = len(pixels)
    endless = pixels if BOUNDARY == "periodic" else np.concatenate([pixels, pixels[-2:0:-1]])
    frequency = np.fft.rfftfreq(len(endless)) * (224 if UNIT == "px224" else size)
    response = np.exp(-(frequency**2) / (2 * CUTOFF**2))
    spectrum = np.fft.rfft(endless, axis=0) * response[:, None, None]
    return np.moveaxis(np.fft.irfft(spectrum, n=len(endless), axis=0)[:size], 0, axis)
