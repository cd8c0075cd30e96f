"""Batches cut into parts that fit into memory: a part that does not fit is halved."""

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


class AutoBatch:
    """Cuts batches into parts of at most `size` samples; None until a batch did not fit into memory.

    What it has learned is kept for the next batch.
    """

    def __init__(self, size: int | None = None) -> None:
        self.size = size

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
                if length == 1 or not _out_of_memory(error):
                    raise
            else:
                first += length
                continue
            # outside of the except clause: its traceback would keep the failed pass's tensors alive
            self.size = length // 2
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return done


def _out_of_memory(error: RuntimeError) -> bool:
    # torch has a class for accelerators only; on a CPU it says so in words
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
