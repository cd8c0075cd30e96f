"""The folders that a user names with --out: checked before work begins, and there whole or to be gone on with.

`check_new_folder` and `new_folder` are for what is written at once, when the work is done: a folder that is there whole
or not at all. `check_own_folder` and `claimed` are for what grows while a command works, and is gone on with.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lvlm_radapt.utils.errors import NoRoom, UserError
from lvlm_radapt.utils.leftovers import aside_of, is_own, settle, settle_again, sweep, sweep_beside
from lvlm_radapt.utils.locking import Lock
from lvlm_radapt.utils.writing import check_outside_runs, writing

_PROBE = bytes(4096)


def check_writable(out: str | os.PathLike[str], *, room: int = 0) -> Path:
    """The folder `out` as a path, links followed; UserError unless it can be written, which is tried.

    room: bytes that will be needed; NoRoom where the disk has fewer. `out` may be missing, and so may its parents.
    """
    target = Path(out).expanduser()
    with writing(target):
        if target.is_symlink() or target.name in ("", ".."):
            target = Path(os.path.realpath(target))  # of a link to itself, `resolve` makes an error of its own
        check_outside_runs(target)
        place = target
        while not os.path.lexists(place):
            place = place.parent
        if not place.is_dir():
            found = f"{place} is {'a link that leads nowhere' if place.is_symlink() else 'a file'}"
            raise UserError(f"{found if place == target else f'cannot write {target}: {found}'}: choose another --out")
        probe = aside_of(place / "probe")
        try:
            probe.write_bytes(_PROBE)
        finally:
            with suppress(OSError):
                probe.unlink()
        free = shutil.disk_usage(place).free
    if free < room:
        raise NoRoom(
            f"cannot write {target}: it takes at least {_size(room)}, and {_size(free)} are free there; make room"
        )
    return target


def check_new_folder(out: str | os.PathLike[str], *, room: int = 0) -> Path:
    """`out` as a path; UserError unless it can be written and is missing or an empty folder. For before long work
    begins; room: as for `check_writable`."""
    target = check_writable(out, room=room)
    with writing(target):
        if target.is_dir():
            settle_again(target)
            if not all(is_own(entry) for entry in target.iterdir()):
                raise UserError(f"{target} is not empty: name a new folder, or remove that one first")
    return target


def check_own_folder(out: str | os.PathLike[str], ours: Collection[str], *, resume: bool = True) -> Path:
    """`out` as a path; UserError unless it can be written and is missing, empty or, to go on with (`resume`), holds
    nothing but `ours` and what a killed process left."""
    target = check_writable(out)
    with writing(target):
        there = sorted(entry.name for entry in target.iterdir() if not is_own(entry)) if target.is_dir() else []
    foreign = [name for name in there if name not in ours]
    if foreign:
        raise UserError(f"{target} holds other files ({foreign[0]}, ...): choose a new or empty folder as --out")
    if there and not resume:
        raise UserError(f"{target} was begun already: use --resume to go on, or another --out")
    return target


def made_before(out: str | os.PathLike[str], state: Path, marker: str) -> bool:
    """Whether the command that saved itself to `state` was killed when the folder `out`, which then holds the file
    `marker`, was whole already: there is nothing to go on with, and `state` is removed."""
    target = Path(out).expanduser()
    with writing(target):
        if target.is_dir():
            settle_again(target)
        made = state.is_file() and (target / marker).is_file()
        if made:
            state.unlink()
    return made


@contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Inside, the folder `out`, which is made if need be, is this launch's alone; what a killed one left is removed.

    UserError while another launch is at work there. Where the block makes nothing, no folder is left.
    """
    new = not out.exists()
    try:
        with Lock.of_folder(out) as lock:
            lock.claim()
            sweep(out)
            yield
    finally:
        if new:
            with suppress(OSError):  # it holds something
                out.rmdir()


@contextmanager
def new_folder(out: str | os.PathLike[str], *, room: int = 0) -> Iterator[Path]:
    """An empty folder to write into; it becomes `out` when the block ends well, else it goes.

    `out` may be missing (its parents are made) or an empty folder, which is kept and filled: it may be a mount point, a
    link or where the user is. UserError when it holds anything, is a file, or cannot be made.
    """
    target = check_new_folder(out, room=room)
    with writing(target):
        within = target if target.is_dir() else None
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep_beside(target, within=within)
        aside = aside_of(target, within=within)
    try:
        with Lock.of_folder(aside) as lock:
            lock.claim()
            with writing(target):
                aside.mkdir(exist_ok=True)  # where there are no locks
                yield aside
                open_to_umask(aside)
        with writing(target):
            if within is not None:
                settle(aside, target)
            elif target.exists():
                raise UserError(f"{target} has been made by another process meanwhile: name a new folder")
            else:
                aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def open_to_umask(folder: Path) -> None:
    """Gives weight files in `folder` the permissions of any new file there: safetensors lets only their owner read."""
    new = aside_of(folder / "permissions")
    new.touch()  # its mode tells the umask: asking for the umask itself would change it for all threads
    mode = new.stat().st_mode & 0o777
    new.unlink()
    for file in folder.glob("*.safetensors"):
        file.chmod(mode)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
