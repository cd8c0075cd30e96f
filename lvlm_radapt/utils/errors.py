"""What the command line turns into one line and an exit code."""

from __future__ import annotations


class UserError(ValueError):
    """Something the user can mend: the message is ONE line that says what, where and what to do."""


def with_notes(text: str, error: BaseException) -> str:
    """`text`, and in brackets what was noted beside the error."""
    notes = dict.fromkeys(getattr(error, "__notes__", ()))
    return f"{text} ({'; '.join(notes)})" if notes else text


def first_sentence(error: BaseException) -> str:
    """The error's first line, and the second one where the first ends in a colon. A sentence that goes on in the next
    line is left out."""
    first, *rest = (line.strip() for line in str(error).strip().split("\n", 2))
    line = f"{first} {rest[0]}" if first.endswith(":") and rest else first
    whole, _, begun = line.rpartition(". ")
    if rest and whole and begun and begun[-1].isalnum():
        line = whole
    return line.rstrip(".,")


class NoRoom(UserError):
    """The disk is full, or a limit on files is reached."""


class Unfinished(Exception):
    """Work that ended early through no mistake of the user's, as when a process died: the message is ONE line that
    says what is missing and how to go on; the exit code is 1."""


class Stopped(BaseException):
    """Ctrl-C or SIGTERM: not an Exception, so that only the outermost level, which prints `advice`, handles it."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"signal {signal_number}")
        self.signal_number = signal_number
        self.advice = ""
