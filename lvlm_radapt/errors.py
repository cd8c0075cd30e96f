"""The one exception type that the command line turns into one line and exit code 2."""

from __future__ import annotations


class UserError(ValueError):
    """Something the user can mend: the message is ONE line that says what, where and what to do."""
