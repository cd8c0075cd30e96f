"""Opening images from anywhere: upright, 8-bit RGB, or one line that says which file is bad."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from lvlm_radapt.errors import UserError

# Pillow's own default limit, kept here so that a program that lifts Pillow's does not lift ours.
MAX_PIXELS = 89_478_485
# Raster formats only: some others of Pillow's start external programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")


def open_image(path: Path) -> Image.Image:
    """The image as RGB, turned upright by its EXIF orientation; of an animation, the first frame.

    Transparency is dropped, not blended: the colours stored under it stay, as with Pillow's `convert("RGB")`
    and so with the stock image processors. 16-bit grey is scaled to 8 bits. Raises UserError naming the file
    when it is missing, empty, truncated, no image, larger than MAX_PIXELS or of 32 bits a channel.
    """
    try:
        if path.stat().st_size == 0:
            raise UserError(f"image {path} is empty (0 bytes): fetch it again")
    except OSError as error:
        raise UserError(f"cannot read image {path}: {error.strerror or error}") from error
    too_large = f"image {path} has more than {MAX_PIXELS} pixels: too large to be opened safely"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path, formats=_FORMATS)
        with image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(too_large)
            image.load()
            return _rgb(_upright(image), path)
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(too_large) from error
    except UnidentifiedImageError as error:
        raise UserError(f"{path} is not an image this program reads ({', '.join(_FORMATS)})") from error
    except Exception as error:  # Pillow's decoders raise many kinds, from OSError to struct.error
        raise UserError(f"image {path} is damaged: {' '.join(str(error).split())}") from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # unreadable EXIF says nothing about orientation; the pixels are good
        return image


def _rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode.startswith("I;16"):
        # convert("RGB") would clip at 255 and leave a white image.
        levels = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise UserError(f"image {path} has 32-bit pixels, whose range is not known: save it with 8 bits")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
