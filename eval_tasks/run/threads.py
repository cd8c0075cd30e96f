"""The number of CPU threads, on which the last bits of float sums depend: a run goes on with that it was begun with."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch

from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.json_files import read_json

P = ParamSpec("P")
T = TypeVar("T")

_MOST = 4096  # a larger number in run.json is no number of threads


def on_recorded_threads(work: Callable[P, T]) -> Callable[P, T]:
    """`work(..., out, resume)` with as many threads as the run in `out` was begun with, where it is resumed; the old
    number comes back at the end. Where `work` has no `resume`, it always goes on."""
    signature = inspect.signature(work)

    @wraps(work)
    def pinned(*args: P.args, **kwargs: P.kwargs) -> T:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        resumed = given.arguments.get("resume", True)
        with pinned_threads(recorded_threads(Path(given.arguments["out"])) if resumed else None):
            return work(*args, **kwargs)

    return pinned


def recorded_threads(out: Path) -> int | None:
    """How many threads each process of a run had: of the run folder `out`, or the first one in its `runs`. None where
    there is none, or where none is recorded."""
    for path in [out / "run.json", *sorted(out.glob("runs/**/run.json"))]:
        with suppress(UserError, AttributeError):
            settings = read_json(path)
            count = settings.get(
                "threads", settings.get("environment", {}).get("threads")
            )  # the latter in earlier versions
            if isinstance(count, int) and 1 <= count <= _MOST:
                return count
    return None


@contextmanager
def pinned_threads(count: int | None) -> Iterator[None]:
    """Inside, torch has so many threads (None: as many as it has), which MKL may not change by itself."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
