"""The names that this program works under until something is whole, and what a killed process leaves of them.

.NUMBER.DIGEST.tmp   a file or folder that is being written: the process's number, a digest of the name it will have
.whole.DIGEST.tmp    in a folder that was there already: all that belongs into it, about to be moved there
.lock                held while a launch works in a folder
.training, .learning in a folder that was there already: what training has saved of itself
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.locking import LOCK, Lock

_WORK = re.compile(r"\.\d+\.[0-9a-f]{16}\.tmp")
_WHOLE = re.compile(r"\.whole\.[0-9a-f]{16}\.tmp")
_STATES = (".training", ".learning")
_OWN = {LOCK, *_STATES, *(f".{state}{LOCK}" for state in _STATES)}


def aside_of(path: Path, *, within: Path | None = None) -> Path:
    """Where `path` is written before it is whole: beside it, or in the folder `within`."""
    return (within or path.parent) / f".{os.getpid()}.{_digest(path)}.tmp"


def is_own(entry: Path) -> bool:
    """Whether a folder's entry is none of a user's files, but one of the names above."""
    return entry.name in _OWN or _WORK.fullmatch(entry.name) is not None or _WHOLE.fullmatch(entry.name) is not None


def sweep(folder: Path) -> None:
    """Remove what killed processes were writing anywhere in `folder`, where nobody else is at work now."""
    for entry in list(folder.rglob(".*.tmp")):
        if _WORK.fullmatch(entry.name):
            _remove(entry)


def sweep_beside(path: Path, *, within: Path | None = None) -> None:
    """Remove what killed processes were writing that was to become `path`. A folder that is being written stays; of a
    file the caller has the lock."""
    for entry in list((within or path.parent).glob(f".*.{_digest(path)}.tmp")):
        if not _WORK.fullmatch(entry.name):
            continue
        if not entry.is_dir():
            _remove(entry)
            continue
        with suppress(UserError), Lock.of_folder(entry) as lock:
            lock.claim()
            _remove(entry)


def settle(aside: Path, folder: Path) -> None:
    """Move all that lies in `aside`, a folder in `folder`, to `folder`; a process that is killed meanwhile leaves what
    `settle_again` ends."""
    whole = folder / f".whole.{_digest(folder)}.tmp"
    aside.rename(whole)
    _empty(whole)


def settle_again(folder: Path) -> None:
    """End what a process was killed at while it moved a whole folder's entries into place."""
    for whole in list(folder.glob(".whole.*.tmp")):
        if _WHOLE.fullmatch(whole.name):
            _empty(whole)


def state_of(target: Path, kind: str) -> Path:
    """Where training for the folder `target` saves itself. kind: training or learning. Beside it as TARGET.KIND; in it
    where it is there already, as what is around a mount point may be no place to write to."""
    beside = target.with_name(f"{target.name}.{kind}")
    return target / f".{kind}" if target.is_dir() and not beside.exists() else beside


def _empty(whole: Path) -> None:
    for entry in sorted(whole.iterdir()):
        os.replace(entry, whole.parent / entry.name)
    whole.rmdir()


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        with suppress(OSError):
            entry.unlink()


def _digest(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
