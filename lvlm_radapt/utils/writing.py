"""Where this program may write: new files and its own, as regular files, and nothing of its own inside a run folder.

Every file and folder that a user names goes through `check_file` or `check_outside_runs`; every file that replaces
another one goes through `whole_file`. What the system refuses becomes one line in `writing`.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from lvlm_radapt.utils.errors import NoRoom, UserError
from lvlm_radapt.utils.leftovers import aside_of

RUN = "run.json"
"""The file that makes a folder a run folder."""
REPORT = "report.html"
"""The one file in a run folder that may be written after the run."""
_HEAD = 4096
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_RUST = re.compile(r"\(os error (\d+)\)")  # as safetensors and tokenizers tell of the system's errors
_TORCH = "inline_container.cc"  # torch's own writer, which does not say what is wrong


def check_file(path: Path, *, what: str, own: Callable[[bytes], bool]) -> Path:
    """`path`, if a file may be written there: it is new, or `own` says of its first 4096 bytes that this program wrote
    it as a `what`. UserError for everything else: other people's files, links, devices, and places in a run folder."""
    if path.name != REPORT or _run_around(path) != _resolved(path).parent:
        check_outside_runs(path)
    _check_regular(path)
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except FileNotFoundError:
        return path
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {path}: {_reason(error)}") from error
    if head and not own(head):
        raise UserError(f"{path} is no {what} of this program, so it is not replaced: name a new file")
    return path


def check_outside_runs(path: Path) -> None:
    """UserError where `path` lies in a run folder, whose files are the run's alone."""
    run = _run_around(path)
    if run is not None:
        raise UserError(f"{path} lies in the run folder {run}: name a place outside of it")


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write into that becomes `path`, flushed to the disk, when the block ends well; else it goes.

    A reader sees the old file or the new one. UserError where a link, a folder or a device is in its place; OSError
    where it cannot be written.
    """
    _check_regular(path)
    aside = aside_of(path)
    try:
        aside.unlink(missing_ok=True)  # of a killed process with this number, or a link that leads elsewhere
        with aside.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        with suppress(OSError):
            aside.unlink()
        raise
    sync_folder(path.parent)


def write_whole(path: Path, content: bytes) -> Path:
    """The file, whole or not at all. UserError when it cannot be written."""
    with writing(path), whole_file(path) as file:
        file.write(content)
    return path


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Inside, what the system refuses becomes a UserError that names `path`: a NoRoom where the disk is full."""
    try:
        yield
    except Exception as error:
        found = _system_error(error)
        if found is None:
            raise
        text = f"cannot write {path}: {_reason(found)}"
        if found.errno in _FULL:
            raise NoRoom(f"{text}; make room") from error
        raise UserError(text) from error


def _system_error(error: Exception) -> OSError | None:
    """The system's own error behind that of a library that writes files; None for any other error."""
    if isinstance(error, OSError):
        return error
    told = _RUST.search(str(error))
    if told is not None:
        return OSError(int(told[1]), os.strerror(int(told[1])))
    if isinstance(error, RuntimeError) and _TORCH in str(error):
        return error.__context__ if isinstance(error.__context__, OSError) else OSError(errno.ENOSPC, "is it full?")
    return None


def _check_regular(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {path}: {_reason(error)}") from error
    if not stat.S_ISREG(mode):
        kind = "a link" if stat.S_ISLNK(mode) else "a folder" if stat.S_ISDIR(mode) else "no regular file"
        raise UserError(f"cannot write {path}: it is {kind}, name a new file")


def _run_around(path: Path) -> Path | None:
    """The run folder that `path` is in or below."""
    return next((folder for folder in _resolved(path).parents if _is_run(folder)), None)


def _is_run(folder: Path) -> bool:
    with suppress(OSError):
        return (folder / RUN).is_file() and (folder / "images").is_dir()
    return False


def _resolved(path: Path) -> Path:
    """With links followed up to its folder, but not the last part's own."""
    try:
        return path.expanduser().parent.resolve() / path.name
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"cannot write {path}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())


def sync_folder(folder: Path) -> None:
    """Flush the folder's list of names to the disk."""
    if os.name != "posix":  # only there can a folder be opened and flushed
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
