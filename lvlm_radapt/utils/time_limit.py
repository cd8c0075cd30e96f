"""Foreign programs, such as a checkpoint's chat template, may not run for ever."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

Result = TypeVar("Result")


class TookTooLong(Exception):
    """What was called did not end in time."""


def within(seconds: float, call: Callable[[], Result]) -> Result:
    """What `call()` gives; TookTooLong when it is still at work after so long, in whichever thread.

    Python code alone is watched, line by line, which makes it a few times slower.
    """
    end = time.monotonic() + seconds

    def watch(frame: FrameType, event: str, value: Any) -> Any:
        if time.monotonic() > end:
            raise TookTooLong(f"it takes more than {seconds:g} seconds")
        return watch

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        return call()
    finally:
        sys.settrace(before)
