"""Entry point: runs a command, turns a user's mistake into one line and exit code 2."""

from __future__ import annotations

import errno
import io
import os
import re
import sys
from typing import Any

import typer

from lvlm_radapt.cli.app import app, console, progress_console
from lvlm_radapt.cli.group import Processes, fail, is_first, join_group, say
from lvlm_radapt.utils.errors import Stopped, Unfinished, UserError
from lvlm_radapt.utils.signals import stoppable


def main() -> None:
    """Entry point of the `lvlm-radapt` command. Of several launched processes the first alone prints results."""
    code = 0
    try:
        _take_any_text()
        with stoppable():
            Processes.group = join_group()
            console.quiet = progress_console.quiet = not is_first()
            code = app(standalone_mode=False) or 0  # of --help and the like
            sys.stdout.flush()
    except UserError as error:
        code = 2
        fail(error)
    except _UsageError as error:
        code = 2
        _misused(error)
    except Unfinished as error:
        code = 1
        fail(error)
    except BrokenPipeError:  # who reads stdout has seen enough, as `head` does
        code = 1
        _drop_stdout()
    except OSError as error:
        told = _in_words(error)
        if told is None:
            raise
        code = 2
        fail(UserError(told))
        if error.filename is None:
            _drop_stdout()
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not _NO_MEMORY.search(str(error)):
            raise
        code = 2
        fail(UserError("out of memory: give smaller images, a smaller model or --batch-size, or free some"))
    except Stopped as stop:
        code = 128 + stop.signal_number
        say(f"stopped; {stop.advice}" if stop.advice else "stopped", once="stopped")
    finally:
        if Processes.group is not None:
            Processes.group.leave()
            Processes.group = None
    sys.exit(code)


def _take_any_text() -> None:
    """Names that are not UTF-8 come in as they are, and go out in an escaped form where the terminal has none."""
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):  # else closed, or a test's
            stream.reconfigure(errors=errors)


_NO_MEMORY = re.compile("can't allocate memory|out of memory")  # torch's words on CPU and GPU
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


def _in_words(error: OSError) -> str | None:
    """One line for what the system refuses wherever it is asked; None for what no command should have met."""
    if isinstance(error, PermissionError) and error.filename is not None:
        return f"cannot open {error.filename!s}: {error.strerror}"
    if error.errno in _UNWRITABLE:
        where = "stdout" if error.filename is None else str(error.filename)
        return f"cannot write to {where}: {error.strerror}"
    return None


def _drop_stdout() -> None:
    """Let go of what stdout still holds: Python would try to write it once more at its end."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


# A flag or an argument that does not fit: the base of typer's own public error, in whichever package it has it.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def _misused(error: Any) -> None:
    """One line, and where to read more, in place of typer's box; the help itself where nothing was asked."""
    if error.ctx is None or type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return
    told = error.format_message().rstrip(".").replace("Value error, ", "")  # the checking library's own words
    fail(UserError(f"{told} (see {error.ctx.command_path} --help)"))
