"""The file that long training saves itself to, so that it can be stopped at any time and go on bit for bit."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import torch

from lvlm_radapt.loading.weights import read_pickle
from lvlm_radapt.utils.errors import NoRoom, UserError
from lvlm_radapt.utils.leftovers import sweep_beside
from lvlm_radapt.utils.locking import Lock
from lvlm_radapt.utils.writing import whole_file, writing

_THREADS = "number of CPU threads (OMP_NUM_THREADS)"  # the order of float sums depends on it


class StateFile:
    """path: None for no file at all. identity: what the result depends on, plain values, to which the number of CPU
    threads is added; a file of another one is refused. every: seconds between two savings. writes: whether this process
    is the one that saves.

    As a context it is this launch's alone (UserError while another is at work on it), and saves the last state that
    was noted also when its block ends: what comes after training may fail. Not after a UserError, such as a full disk
    or a loss that diverges.
    """

    def __init__(
        self, path: Path | None, identity: Mapping[str, Any], *, every: float = 10.0, writes: bool = True
    ) -> None:
        self.path = path
        self.identity = {**identity, _THREADS: torch.get_num_threads()}
        self.every = every
        self._lock = Lock.of_file(path) if path is not None and writes else None
        self._saved = time.monotonic()
        self._last: Mapping[str, Any] | None = None
        """What was noted and is not saved yet."""

    def __enter__(self) -> StateFile:
        if self._lock is not None and self.path is not None:
            self._lock.claim()
            sweep_beside(self.path)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if self._last is not None and (kind is None or not issubclass(kind, UserError)):
                with suppress(NoRoom) if kind is None else nullcontext():  # the result itself may still find room
                    self._write(self._last)
        finally:
            if self._lock is not None:
                self._lock.release()

    def begin(self, *, resume: bool) -> dict[str, Any] | None:
        """The state to go on from, None to begin anew. UserError for a file that is there and was not asked for, is
        damaged, or belongs to other settings, the first of which is named."""
        if self.path is None or not self.path.exists():
            return None
        if not resume:
            raise UserError(f"{self.path} holds training that was stopped: go on with --resume, or remove it")
        try:
            content = read_pickle(self.path)
            identity, state = content["identity"], content["state"]
            if not isinstance(identity, dict) or not isinstance(state, dict):
                raise TypeError("no dictionary")
        except (UserError, LookupError, TypeError) as error:
            raise UserError(f"{self.path} is damaged: remove it and begin anew") from error
        for name in {**identity, **self.identity}:
            was, now = identity.get(name), self.identity.get(name)
            if was != now and not (name == _THREADS and was is None):  # earlier versions did not note it
                raise UserError(
                    f"{self.path} was begun with another {name} ({_short(was)}, now {_short(now)}): go on with that "
                    "one, or remove the file"
                )
        return state

    def resume(self, restore: Callable[[dict[str, Any]], None], *, resume: bool) -> None:
        """Give the state to go on from to `restore`, if there is one. UserError as for `begin`, and where `restore`
        cannot do anything with it: the file may hold any values."""
        state = self.begin(resume=resume)
        if state is None:
            return
        try:
            restore(state)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError) as error:
            raise UserError(f"{self.path} is damaged: remove it and begin anew") from error

    def note(self, state: Mapping[str, Any]) -> None:
        """`state`, which nothing changes any more, is the one to go on from; saved if it is time. UserError when that
        cannot be done."""
        self._last = state
        if time.monotonic() - self._saved >= self.every:
            self._write(state)

    def _write(self, state: Mapping[str, Any]) -> None:
        if self.path is None:
            return
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(self.path) as file:
                torch.save({"identity": self.identity, "state": dict(state)}, file)
        self._saved = time.monotonic()
        self._last = None

    def remove(self) -> None:
        """Takes the file away, if there is one."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 16 else text[:8] + "..."
