"""Images to train on: any folder of them, no labels, in batches that share a canvas."""

from __future__ import annotations

import functools
import hashlib
import os
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from PIL import Image

from lvlm_radapt.models.base import PixelBatch, PixelModel
from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.images import SUFFIXES, open_image
from lvlm_radapt.utils.json_files import read_bytes

_NAMED = 5  # unreadable files that are told by name; of the others, how many


def image_files(
    folder: str | os.PathLike[str],
    *,
    limit: int | None = None,
    seed: int = 0,
    tell: Callable[[str], None] | None = None,
) -> list[Path]:
    """The images in `folder` and its subfolders that can be opened, each decoded once to know it.

    By suffix; hidden files and folders are passed over. Unreadable ones are left out, and `tell` gets one line that
    names and counts them.

    limit: at most so many, drawn without replacement by `seed`, in the order drawn; None for all, sorted by path. No
        image beyond them is opened, except in place of unreadable ones.

    Raises:
        UserError: no such folder, no image in it, or none that can be opened.
    """
    if limit is not None and limit < 1:
        raise UserError(f"at least 1 image is needed, {limit} were asked for")
    root = Path(folder).expanduser()
    found = _found(root)
    if not found:
        raise UserError(f"{root} holds no images ({', '.join(SUFFIXES)}): name a folder that does")
    if limit is not None:
        random.Random(seed).shuffle(found)
    good: list[Path] = []
    bad: list[Path] = []
    reason = ""
    for path in found:
        if len(good) == limit:
            break
        try:
            _size(path)
            good.append(path)
        except UserError as error:
            reason = reason or str(error)
            bad.append(path)
    if not good:
        raise UserError(f"none of the {len(bad)} images in {root} can be opened, the first of them: {reason}")
    if bad and tell is not None:
        names = ", ".join(str(path.relative_to(root)) for path in bad[:_NAMED])
        more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        tell(f"{root}: {len(bad)} unreadable image{'s' if len(bad) > 1 else ''} left out: {names}{more}")
    return good


def images_digest(files: Sequence[Path]) -> str:
    """sha256 over the files' contents, whatever their names and order: which images these are."""
    each = sorted(hashlib.sha256(read_bytes(path)).digest() for path in files)
    return hashlib.sha256(b"".join(each)).hexdigest()


def load_pixels(model: PixelModel, files: Sequence[Path]) -> PixelBatch:
    """The images of `files` on the model's canvas, which they must share (`batches_of` sees to it)."""
    return model.pixels([open_image(path) for path in files])


def batches_of(model: PixelModel, files: Sequence[Path], size: int, *, seed: int, epoch: int) -> list[list[Path]]:
    """One epoch: the files in full batches of `size` images that share a canvas, a function of the arguments.

    Shuffled by (seed, epoch). What is left over on a canvas sits this epoch out.

    Raises:
        UserError: too few images for a single batch.
    """
    if size < 1:
        raise UserError(f"the batch size must be at least 1, got {size}")
    shuffled = list(files)
    draw = random.Random(f"{seed} {epoch}")
    draw.shuffle(shuffled)
    groups = _by_canvas(model, shuffled)
    batches = [g[i : i + size] for g in groups for i in range(0, len(g) - size + 1, size)]
    if not batches:
        most = max(map(len, groups), default=0)
        apart = f", at most {most} of one canvas shape" if len(groups) > 1 else ""
        raise UserError(
            f"{len(files)} images are too few for a batch of {size}{apart}: give more images or a smaller batch"
        )
    draw.shuffle(batches)
    return batches


def canvas_batches(model: PixelModel, files: Sequence[Path], size: int) -> list[list[Path]]:
    """All files, in order, in batches of at most `size` images that share a canvas: to measure on, not to train."""
    return [group[i : i + size] for group in _by_canvas(model, files) for i in range(0, len(group), size)]


def batches_from(
    model: PixelModel, files: Sequence[Path], size: int, *, seed: int = 0, skip: int = 0
) -> Iterator[list[Path]]:
    """The files of batch after batch without end, epoch after epoch (`batches_of`).

    skip: so many batches first are passed over, for work that is taken up again: batch number n is the same whatever
        was skipped.

    Raises:
        UserError: too few images for a batch.
    """
    epoch = 0
    while True:
        batches = batches_of(model, files, size, seed=seed, epoch=epoch)
        yield from batches[skip:]
        skip = max(0, skip - len(batches))
        epoch += 1


def _found(root: Path) -> list[Path]:
    if not root.is_dir():
        raise UserError(f"{root} is no folder: name one with images in it")
    found: list[Path] = []
    for place, folders, names in os.walk(root, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place, n) for n in names if n.lower().endswith(SUFFIXES) and not n.startswith(".")]
    return sorted(found)


def _refuse(error: OSError) -> None:
    raise UserError(f"cannot read {error.filename}: {error.strerror or error}")


def _size(path: Path) -> tuple[int, int]:
    """(width, height) of the upright image, which is decoded once; UserError when it cannot be opened."""
    try:
        changed = path.stat().st_mtime_ns
    except OSError as error:
        raise UserError(f"cannot read image {path}: {error.strerror or error}") from error
    return _decoded_size(path, changed)


@functools.lru_cache(maxsize=1 << 18)
def _decoded_size(path: Path, changed: int) -> tuple[int, int]:
    return open_image(path).size


def _by_canvas(model: PixelModel, files: Sequence[Path]) -> list[list[Path]]:
    """The files of each canvas, in order."""
    groups: dict[tuple[int, int], list[Path]] = {}
    for path in files:
        groups.setdefault(model.canvas(_blank(*_size(path))), []).append(path)
    return [*groups.values()]


@functools.lru_cache(maxsize=32)
def _blank(width: int, height: int) -> Image.Image:
    return Image.new("L", (width, height))
