"""Batches cut into parts that fit into memory: a part that does not fit is halved."""

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


class AutoBatch:
    """Cuts batches into parts of at most `size` samples; None until a batch did not fit into memory.

    What it has learned is kept for the next batch. last_resort: asked where a single sample does not fit; True if
    the work takes less memory from now on.
    """

    def __init__(self, size: int | None = None, last_resort: Callable[[], bool] = lambda: False) -> None:
        self.size = size
        self._last_resort = last_resort

    def run(self, work: Callable[[slice], T], count: int) -> list[T]:
        """`work(rows)` for consecutive slices that make up range(count), in order.

        A part that runs out of memory is done again in halves, so nothing is lost; an error of a single
        sample is raised on.
        """
        done: list[T] = []
        first = 0
        while first < count:
            length = min(self.size or count, count - first)
            try:
                done.append(work(slice(first, first + length)))
            except RuntimeError as error:
                if not out_of_memory(error) or (length == 1 and not self._last_resort()):
                    raise
            else:
                first += length
                continue
            # outside of the except clause: its traceback would keep the failed pass's tensors alive
            self.size = max(1, length // 2)
            free_memory()
        return done


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory does not suffice, an accelerator's or the machine's."""
    # torch has a class for accelerators only; on a CPU it says so in words
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def free_memory() -> None:
    """Gives back what a failed pass held. To be called outside of the `except` clause: its traceback keeps tensors."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
