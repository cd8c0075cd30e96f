"""The processes one command runs in: which of them speaks, and what the others leave to it."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

import typer
from rich.text import Text

from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.printing import PlainConsole, one_line

if TYPE_CHECKING:
    from eval_tasks.run.processes import Group


class Processes:
    """The group of processes this command runs in, joined when `main` begins."""

    group: Group | None = None


def join_group() -> Group | None:
    """The launched group, None for a process alone: `--help` then need not wait for torch."""
    if "RANK" not in os.environ:
        return None
    from eval_tasks.run.processes import join

    joined = join()
    return joined if joined.size > 1 else None


def is_first() -> bool:
    return Processes.group is None or Processes.group.first


def exit_unless_rank0() -> None:
    """End this command in all launched processes but one: there is nothing in it to share."""
    if not is_first():
        raise typer.Exit


def fail(error: Exception) -> None:
    if Processes.group is not None and isinstance(error, UserError):
        Processes.group.fail(error)  # the others would meet it too
    say(Text.assemble(("error:", "red"), " ", one_line(str(error))), once=str(error))


def say(text: str | Text, *, once: str) -> None:
    """A line on stderr, by one process alone of all that have one to say under the name `once`."""
    if Processes.group is None or Processes.group.once(once):
        with suppress(OSError):  # a stderr that takes nothing: there is nobody to tell
            PlainConsole(stderr=True, soft_wrap=True).print(text)
