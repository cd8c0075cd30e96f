"""Ctrl-C and SIGTERM (pre-emption): work ends after the step in hand, with everything saved."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from lvlm_radapt.utils.errors import Stopped

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
ECHO = 2.0  # seconds: launchers pass on a Ctrl-C that the terminal has sent to us already
_received: tuple[int, float] | None = None


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, the first SIGINT or SIGTERM raises Stopped in the main thread; a later one ends the process at once."""
    global _received
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _received = None
    before = {number: signal.signal(number, _handle) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _received = None


def check_stopped() -> None:
    """Raise Stopped where a signal has come. For the main thread, between steps: an exception raised by a signal is
    lost where it falls into code that cannot raise, such as a finaliser."""
    if _received is not None and threading.current_thread() is threading.main_thread():
        raise Stopped(_received[0])


def _handle(number: int, _frame: FrameType | None) -> None:
    global _received
    now = time.monotonic()
    if _received is None:
        _received = (number, now)
        raise Stopped(number)
    if now - _received[1] > ECHO:
        os._exit(128 + number)
