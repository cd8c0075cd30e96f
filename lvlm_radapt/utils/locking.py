"""One launch at a time in a run folder, or at a file that training is saved to.

The system lets go of these locks when a process ends, however it ends, so that a killed run blocks nothing. Where it
has none (Windows, some network drives) nothing is locked.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from pathlib import Path
from types import TracebackType

from lvlm_radapt.utils.errors import UserError

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
"""The file that is locked in a run folder; removed when the last process leaves, like every lock's."""


class Lock:
    """Something in use by the processes of one launch, each with a lock of its own: the first `claim`s it, then the
    others `share` it. It stays in use until the last of them has ended, whichever that is. path: the file that is
    locked; owned: what it stands for."""

    def __init__(self, path: Path, owned: Path) -> None:
        self._path = path
        self._owned = owned
        self._handle: int | None = None

    @classmethod
    def of_folder(cls, folder: str | os.PathLike[str]) -> Lock:
        return cls(Path(folder) / LOCK, Path(folder))

    @classmethod
    def of_file(cls, file: Path) -> Lock:
        """A file that may not be there yet; the lock lies beside it."""
        return cls(file.with_name(f".{file.name}{LOCK}"), file)

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def claim(self) -> None:
        """Take it, in a folder that is made if need be, for this process and those that will share it; UserError while
        another launch is at work there."""
        if fcntl is None:
            return
        with contextlib.suppress(OSError):  # what cannot be written is told by whoever writes the run
            self._path.parent.mkdir(parents=True, exist_ok=True)
            while not self._take(fcntl.LOCK_EX, os.O_CREAT):
                pass
        if self._handle is not None:
            with contextlib.suppress(OSError):  # of a full disk, say: the lock holds without a name in it
                os.ftruncate(self._handle, 0)
                os.pwrite(self._handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
            self._lock(fcntl.LOCK_SH)

    def share(self) -> None:
        """Join the launch whose first process has taken it; UserError where another launch has it by now."""
        if fcntl is not None:
            with contextlib.suppress(OSError):
                self._take(fcntl.LOCK_SH, 0)

    def release(self) -> None:
        """Leave it; nothing is done where it was not taken."""
        if self._handle is None:
            return
        with contextlib.suppress(OSError, UserError):
            self._lock(fcntl.LOCK_EX)  # the last one: nobody can be at work here
            self._path.unlink(missing_ok=True)
        self._close()

    def _take(self, kind: int, flags: int) -> bool:
        """Whether the file that was locked is still the one that is there."""
        try:
            self._handle = os.open(self._path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | flags, 0o666)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise self._strange() from error
            raise
        try:
            mine = os.fstat(self._handle)
            if not stat.S_ISREG(mine.st_mode) or mine.st_nlink > 1:
                raise self._strange()
            self._lock(kind)
            there = os.lstat(self._path)
            if (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino):
                return True
        except FileNotFoundError:
            pass
        except (OSError, UserError):
            self._close()
            raise
        self._close()  # the one that had it has just removed it
        return False

    def _strange(self) -> UserError:
        """For something that no launch has made, which must not be written to."""
        return UserError(f"{self._path} is no lock of this program, but a link or no regular file: remove it")

    def _lock(self, kind: int) -> None:
        assert self._handle is not None
        try:
            fcntl.flock(self._handle, kind | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(self._handle, 200, 0).decode(errors="replace") or "another process"
            raise UserError(
                f"{self._owned} is in use by {owner}: wait until it ends, or choose another --out"
            ) from error

    def _close(self) -> None:
        assert self._handle is not None
        os.close(self._handle)
        self._handle = None
