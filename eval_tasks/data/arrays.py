"""Images that lie in one large array of a file: CIFAR's batches, STL-10's and PatchCamelyon's."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from eval_tasks.data.rows import RowImage
from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.json_files import check_regular

ArrayKind = Literal["cifar10-binary", "cifar100-binary", "cifar-python", "stl10", "pcam"]
_CIFAR = 3 * 32 * 32


@dataclass(frozen=True)
class ArrayImage(RowImage):
    """Image number `row` of the array in the one file of `files`."""

    kind: ArrayKind

    def is_file(self) -> bool:
        return Path(self.files[0]).is_file()

    def _content(self) -> bytes:
        pixels = np.ascontiguousarray(open_array(self.kind, self.files[0])[self.row])
        # the plainest format that the opener of all images reads
        return b"P6\n%d %d\n255\n" % (pixels.shape[1], pixels.shape[0]) + pixels.tobytes()


@lru_cache(maxsize=4)
def open_array(kind: ArrayKind, file: str) -> Any:
    """uint8 [N, H, W, 3], in memory or still on the disk; UserError for a file of another kind."""
    array = _READERS[kind](Path(file))
    if array.ndim != 4 or array.shape[-1] != 3 or array.dtype != np.uint8:
        raise UserError(f"{file} holds no 8-bit RGB images: fetch it again")
    return array


def cifar_binary(path: Path, labels: int) -> tuple[np.ndarray, np.ndarray]:
    """(images [N, 32, 32, 3], labels [N, labels]) of a file whose records are so many label bytes and an image."""
    records = _bytes(path, labels + _CIFAR)
    return _upright(records[:, labels:]), records[:, :labels]


def cifar_python(path: Path) -> dict[str, Any]:
    """A pickled dictionary of CIFAR's: its entries, arrays as uint8 numpy arrays.

    A pickle can run code, so nothing is looked up that it names: of an array only the bytes and the shape are taken.
    UserError for a file that holds anything but dictionaries, lists, texts, numbers and 8-bit arrays.
    """
    try:
        check_regular(path)
        with path.open("rb") as file:
            content = _Plain(file, encoding="latin1").load()
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # a damaged pickle makes the reader raise many kinds
        raise UserError(f"{path} is no batch of CIFAR: {' '.join(str(error).split()) or 'it is damaged'}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is no batch of CIFAR: it holds no dictionary")
    return {str(key): value.array if isinstance(value, _Array) else value for key, value in content.items()}


def stl_labels(path: Path) -> np.ndarray:
    """STL-10's labels [N], from 1."""
    return _bytes(path, 1)[:, 0]


def h5(path: Path, key: str) -> Any:
    """The array of that name in an HDF5 file, still on the disk; UserError without the library or the array."""
    try:
        import h5py
    except ImportError as error:
        raise UserError(f"{path} needs the library h5py: pip install 'lvlm-radapt[zero-shot]'") from error
    check_regular(path)
    try:
        file = h5py.File(path, "r")
        link, found = file.get(key, getlink=True), None
        if isinstance(link, h5py.HardLink):
            found = file[key]
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        raise UserError(f"{path} is no HDF5 file with an array {key!r}: fetch it again") from error
    if link is None or (found is not None and not isinstance(found, h5py.Dataset)):
        raise UserError(f"{path} is no HDF5 file with an array {key!r}: fetch it again")
    if found is None or found.external or found.is_virtual:
        raise UserError(f"{path}: the array {key!r} lies in another file, which is not read: fetch it again")
    return found


def _bytes(path: Path, width: int) -> np.ndarray:
    """uint8 [N, width], left on the disk until it is looked at."""
    check_regular(path)
    try:
        size = path.stat().st_size
        if size == 0 or size % width:
            raise UserError(f"{path} is {size} bytes long, no multiple of {width}: fetch it again")
        return np.memmap(path, dtype=np.uint8, mode="r").reshape(-1, width)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def _upright(images: np.ndarray) -> np.ndarray:
    return images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def _stl10(path: Path) -> np.ndarray:
    # columns come before rows
    return _bytes(path, 3 * 96 * 96).reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1)


def _python_images(path: Path) -> np.ndarray:
    data = cifar_python(path).get("data")
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != _CIFAR:
        raise UserError(f"{path} is no batch of CIFAR: its data are no images of 32x32 pixels")
    return _upright(data)


class _Array:
    """What stands in a pickle for a numpy array."""

    array: np.ndarray

    def __init__(self, *kind: object) -> None:
        pass

    def __setstate__(self, state: Sequence[Any]) -> None:
        _, shape, dtype, fortran, raw = state
        if getattr(dtype, "letter", None) != "u1" or fortran:
            raise ValueError("it holds an array that is not of bytes")
        content = raw.encode("latin1") if isinstance(raw, str) else bytes(raw)
        self.array = np.frombuffer(content, dtype=np.uint8).reshape(shape)


class _Dtype:
    """What stands there for the type of its numbers."""

    def __init__(self, letter: str, *how: object) -> None:
        self.letter = letter

    def __setstate__(self, state: object) -> None:
        pass


class _Plain(pickle.Unpickler):
    """Reads no class and calls no function but these."""

    def find_class(self, module: str, name: str) -> Any:
        root = module.split(".")[0]
        if root == "numpy" and name in ("_reconstruct", "ndarray"):
            return _Array
        if root == "numpy" and name == "dtype":
            return _Dtype
        if (module, name) == ("_codecs", "encode"):
            return lambda text, encoding: str(text).encode("latin1")
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is not read")


_READERS: dict[ArrayKind, Callable[[Path], Any]] = {
    "cifar10-binary": lambda path: cifar_binary(path, 1)[0],
    "cifar100-binary": lambda path: cifar_binary(path, 2)[0],
    "cifar-python": _python_images,
    "stl10": _stl10,
    "pcam": lambda path: h5(path, "x"),
}
