"""Opening images from anywhere: upright, 8-bit RGB, or one line that says which file is bad."""

from __future__ import annotations

import hashlib
import stat
import warnings
from io import BytesIO
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from lvlm_radapt.utils.bounds import MOST_PIXELS
from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.json_files import read_bytes

MAX_PIXELS = MOST_PIXELS
# Padded to a square, or with its short side scaled up to a canvas, a strip would fill the memory.
MAX_SIDE = 16_384
MAX_ASPECT = 300
# Raster formats only: some others of Pillow's start external programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")


class Held(Protocol):
    """An image that is no file of its own, such as a `RowImage`; as a string, what messages call it."""

    def read(self) -> bytes: ...


def open_image(path: Path | Held, formats: tuple[str, ...] = FORMATS, most_pixels: int = MAX_PIXELS) -> Image.Image:
    """The image as RGB, turned upright by its EXIF orientation; of an animation, the first frame.

    Links are followed, as data folders and caches are made of them, to regular files only: nothing is read from a
    pipe or a device.

    Transparency is dropped, not blended: the colours stored under it stay, as with Pillow's `convert("RGB")`
    and so with the stock image processors. 16-bit grey is scaled to 8 bits. Raises UserError naming the file
    when it is missing, empty, truncated, of none of the `formats`, larger than `most_pixels`, longer than MAX_SIDE,
    more than MAX_ASPECT times as long as wide, or of 32 bits a channel.
    """
    content = _content(path)
    too_large = f"image {path} has more than {most_pixels} pixels: too large to be opened safely"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(content, formats=formats)
        with image:
            if image.width * image.height > most_pixels:
                raise UserError(too_large)
            _refuse_strip(image, path)
            image.load()
            return _rgb(_upright(image), path)
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(too_large) from error
    except UnidentifiedImageError as error:
        raise UserError(f"{path} is not an image this program reads ({', '.join(formats)})") from error
    except Exception as error:  # Pillow's decoders raise many kinds, from OSError to struct.error
        raise UserError(f"image {path} is damaged: {' '.join(str(error).split())}") from error


def png_bytes(pixels: np.ndarray) -> bytes:
    """A uint8 [3, H, W] image as the bytes of its PNG file; equal pixels give equal bytes. ValueError for others."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[0] != 3:
        raise ValueError(f"an image is uint8 [3, H, W], got {pixels.dtype} {list(pixels.shape)}")
    encoded = BytesIO()
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    image.save(encoded, format="PNG", compress_level=1)  # more makes attacked images hardly smaller
    return encoded.getvalue()


def file_digest(path: Path) -> str:
    """SHA-256 of an image file's bytes. UserError as for `open_image`."""
    return hashlib.sha256(read_bytes(path)).hexdigest()


def image_key(source: Path | Held) -> str:
    """An identity of the stored image, 32 hexadecimal digits of the SHA-256 of its bytes.

    It is equal for all samples of one image, also where every row of a data set holds a copy of its own. UserError as
    for `open_image`.
    """
    content = _content(source)
    stored = read_bytes(content) if isinstance(content, Path) else content.getvalue()
    return hashlib.sha256(stored).hexdigest()[:32]


def _content(source: Path | Held) -> Path | BytesIO:
    """What Pillow can open, known to hold something."""
    if not isinstance(source, Path):
        content = source.read()
        size = len(content)
    else:
        try:
            found = source.stat()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else None
            raise UserError(f"cannot read image {source}: {reason or error}") from error
        if not stat.S_ISREG(found.st_mode):
            raise UserError(f"image {source} is no regular file: put the image itself there")
        size = found.st_size
    if size == 0:
        raise UserError(f"image {source} is empty (0 bytes): fetch it again")
    return source if isinstance(source, Path) else BytesIO(content)


def _refuse_strip(image: Image.Image, path: Path | Held) -> None:
    short, long = sorted(image.size)
    if long > MAX_SIDE or long > MAX_ASPECT * short:
        raise UserError(
            f"image {path} has {image.width}x{image.height} pixels: at most {MAX_SIDE} a side and {MAX_ASPECT} times "
            "as long as wide can be used"
        )


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # unreadable EXIF says nothing about orientation; the pixels are good
        return image


def _rgb(image: Image.Image, path: Path | Held) -> Image.Image:
    if image.mode.startswith("I;16"):
        # convert("RGB") would clip at 255 and leave a white image.
        levels = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise UserError(f"image {path} has 32-bit pixels, whose range is not known: save it with 8 bits")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
