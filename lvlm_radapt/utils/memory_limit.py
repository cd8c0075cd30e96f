"""Files and programs of others may not fill the memory, whatever they do to get there."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_STATE = Path("/proc/self/statm")


@contextmanager
def memory_limit(more: int) -> Iterator[None]:
    """Inside, this process may map that many bytes more than it has now; then MemoryError, or a library's own error.

    The operating system counts, so operations that run in C are stopped too. It counts all threads together: choose a
    bound far above what the work of others may need meanwhile. Linux alone counts like this; elsewhere nothing is
    bounded.
    """
    if sys.platform != "linux" or not _STATE.is_file():
        yield
        return
    import resource

    before, hard = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(_STATE.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    bounds = [bound for bound in (before, hard, mapped + more) if bound != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(bounds), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, hard))
