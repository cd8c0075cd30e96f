"""A folder that is there whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lvlm_radapt.errors import UserError
from lvlm_radapt.writing import check_outside_runs


def check_new_folder(out: str | os.PathLike[str]) -> Path:
    """`out` as a path; UserError unless it is missing or an empty folder. Asked before long work begins."""
    target = Path(out).expanduser()
    check_outside_runs(target)
    try:
        if target.exists() and not target.is_dir():
            raise UserError(f"{target} is a file: name a new folder")
        if target.is_dir() and any(target.iterdir()):
            raise UserError(f"{target} is not empty: name a new folder, or remove that one first")
    except OSError as error:
        raise UserError(f"cannot write to {target}: {error.strerror or error}") from error
    return target


@contextmanager
def new_folder(out: str | os.PathLike[str]) -> Iterator[Path]:
    """An empty folder beside `out` to write into; it becomes `out` when the block ends well, else it goes.

    `out` may be missing (its parents are made) or an empty folder. UserError when it holds anything, is a
    file, or cannot be made.
    """
    target = check_new_folder(out)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.parent / f".{target.name or 'out'}.{os.getpid()}.partial"
        shutil.rmtree(aside, ignore_errors=True)  # of an earlier process that was killed and had this number
        aside.mkdir()
    except OSError as error:
        raise UserError(f"cannot write to {target}: {error.strerror or error}") from error
    try:
        yield aside
        open_to_umask(aside)
        if target.is_dir():
            target.rmdir()  # a rename onto an empty folder is an error on some systems
        aside.rename(target)
    except OSError as error:
        raise UserError(f"cannot write to {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def open_to_umask(folder: Path) -> None:
    """Gives weight files in `folder` the permissions of any new file there: safetensors lets only their owner read."""
    new = folder / f".{os.getpid()}.permissions"
    new.touch()  # its mode tells the umask: asking for the umask itself would change it for all threads
    mode = new.stat().st_mode & 0o777
    new.unlink()
    for file in folder.glob("*.safetensors"):
        file.chmod(mode)
