"""Chat messages as Qwen's examples write them, as an image and a question."""

from __future__ import annotations

import base64
import binascii
import importlib
import importlib.util
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from PIL import Image, UnidentifiedImageError

from lvlm_radapt.utils.errors import UserError

Message = Mapping[str, Any]

_SIZES = ("resized_height", "resized_width", "min_pixels", "max_pixels")


def read_messages(messages: Sequence[Message]) -> tuple[Image.Image, str]:
    """(image, the user's words) of one user turn with one still image, for `pixels` and `generate`.

    messages: [{"role": "user", "content": [{"type": "image", "image": ...}, {"type": "text", "text": ...}]}]; the
        image is a PIL image, a path, a file:// URL or base64 data (data:image/png;base64,...).
    An image with a size of its own (resized_height, min_pixels, ...) or behind http(s) is left to qwen_vl_utils,
    where it is installed; the others never need it.

    UserError, one line, for other roles, several turns or images, videos, and images that do not open.
    """
    if len(messages) != 1 or messages[0].get("role") != "user":
        raise UserError("messages: give one turn of the role user; system prompts come from the conversation template")
    content = messages[0].get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else list(content or ())
    kinds = [str(part.get("type")) for part in parts]
    foreign = sorted(set(kinds) - {"image", "text"})
    if foreign:
        raise UserError(f"messages: a part of type {foreign[0]!r} is not supported, only still images and text are")
    if kinds.count("image") != 1:
        raise UserError(f"messages: {kinds.count('image')} images in the turn, one is needed")
    text = "\n".join(str(part["text"]) for part in parts if part["type"] == "text")
    return _image(parts[kinds.index("image")]), text


def _image(part: Mapping[str, Any]) -> Image.Image:
    source = part.get("image")
    if isinstance(source, Image.Image) and not any(key in part for key in _SIZES):
        return source
    remote = isinstance(source, str) and source.startswith(("http://", "https://"))
    if remote or any(key in part for key in _SIZES):
        if importlib.util.find_spec("qwen_vl_utils") is None:
            what = "an image behind a URL" if remote else "an image with a size of its own"
            raise UserError(
                f"messages: {what} needs qwen-vl-utils (pip install qwen-vl-utils), or give the file itself"
            )
        return importlib.import_module("qwen_vl_utils").fetch_image(dict(part))
    if not isinstance(source, str | Path):
        raise UserError(f"messages: an image is a PIL image, a path or base64 data, not {type(source).__name__}")
    text = str(source)
    try:
        if text.startswith("data:"):
            file: Any = io.BytesIO(base64.b64decode(text.partition("base64,")[2], validate=True))
        else:
            file = Path(unquote(text.removeprefix("file://")) if text.startswith("file://") else text).expanduser()
        with Image.open(file) as image:
            return image.convert("RGB")
    except (OSError, UnidentifiedImageError, binascii.Error, Image.DecompressionBombError) as error:
        raise UserError(f"messages: the image {text[:60]!r} does not open: {error}") from error
