"""Where the command begins: `lvlm-radapt`, and `python -m lvlm_radapt` as launchers start it.

The command line takes a second to import. A Ctrl-C before that, or a standard stream that is closed, must not end in
a traceback, so that both are seen to first.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


def main() -> None:
    """Run the command line."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the command line puts handlers that save in their place
        signal.signal(number, _stop)
    open_streams()
    from lvlm_radapt.cli import main as run

    run()


def open_streams() -> None:
    """Put the null device in the place of standard streams that are closed. Python has None there, and the next file
    that is opened would get the stream's number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115


def _stop(number: int, _frame: FrameType | None) -> None:
    os.write(2, b"stopped\n")
    os._exit(128 + number)


if __name__ == "__main__":
    main()
