"""A batch divided among threads on a CPU.

One operation of a small model does not fill several cores. Two halves of the batch, each on cores of its own, do.
"""

from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from itertools import pairwise
from threading import Event
from typing import TypeVar

import torch

T = TypeVar("T")

_LEAST = 8  # samples of a worker: with fewer the time goes into starting operations (benchmarks/RESULTS.md)


def cpu_workers(count: int) -> int:
    """How many threads to share `count` samples out to: at least 8 samples and one core each."""
    return max(1, min(torch.get_num_threads(), count // _LEAST))


def workers_of(x: torch.Tensor) -> int:
    """How many threads to share the images `x` [B, ...] out to: one on a GPU."""
    return cpu_workers(len(x)) if x.device.type == "cpu" else 1


def map_over_threads(work: Callable[[list[int], Callable[[], None]], T], count: int, workers: int) -> list[T]:
    """`work(rows, check)` for each of `workers` stretches of range(count), side by side; their results in order.

    torch's threads are shared out among them. `work` calls `check` now and then: it ends the work when another
    has failed or the caller was interrupted, whose exception is raised here.
    """
    bounds = [part * count // workers for part in range(workers + 1)]
    threads = torch.get_num_threads()
    stop = Event()

    def check() -> None:
        if stop.is_set():
            raise CancelledError

    pool = ThreadPoolExecutor(workers, thread_name_prefix="attack")
    torch.set_num_threads(max(1, threads // workers))  # what new threads begin with
    try:
        futures = [pool.submit(work, list(range(*pair)), check) for pair in pairwise(bounds)]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()
        return [future.result() for future in futures]
    finally:
        stop.set()
        pool.shutdown(wait=True)
        torch.set_num_threads(threads)
