"""Permissions that hold for the superuser too, as whom containers often run the tests."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

_VERSION = 0x20080522  # of the kernel's interface to capabilities
_OVERRIDE = 0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, in the first word


@contextmanager
def obeyed() -> Iterator[None]:
    """Inside, this thread may open only what the permissions of files let their owner open."""
    if os.name != "posix":
        pytest.skip("the system has no such permissions")
    if os.geteuid() != 0:
        yield
        return
    system = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_VERSION, 0)
    words = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable, of 32 capabilities and of the next 32
    if system.capget(header, words) != 0:
        pytest.skip("the superuser cannot be bound to permissions here")
    before = words[0]
    words[0] = before & ~_OVERRIDE
    assert system.capset(header, words) == 0
    try:
        yield
    finally:
        words[0] = before
        assert system.capset(header, words) == 0
