"""What a user sees when something cannot be opened: one line, and nothing beside it."""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

import pytest

from lvlm_radapt.utils.errors import UserError


@contextmanager
def quiet() -> Iterator[None]:
    """Fails when anything is written to stdout or stderr, also by transformers' log: its handlers keep the stream
    that was stderr when they were made, which pytest's own captures do not see."""
    written = io.StringIO()
    handlers = [h for h in logging.getLogger("transformers").handlers if isinstance(h, logging.StreamHandler)]
    streams = [handler.stream for handler in handlers]
    for handler in handlers:
        handler.setStream(written)
    try:
        with redirect_stdout(written), redirect_stderr(written):
            yield
        assert written.getvalue() == ""
    finally:
        for handler, stream in zip(handlers, streams, strict=True):
            handler.setStream(stream)


@contextmanager
def one_line(match: str) -> Iterator[None]:
    """Fails unless a UserError of one line that `match` is found in is all that comes."""
    with quiet(), pytest.raises(UserError, match=match) as caught:
        yield
    assert "\n" not in str(caught.value)


@contextmanager
def perhaps_refused() -> Iterator[None]:
    """Fails on any error but a UserError of one line."""
    try:
        yield
    except UserError as error:
        if "\n" in str(error):
            pytest.fail(f"more than one line: {error}")
