"""One-line messages for what a user got wrong in a file or a name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.json_files import first_problem, read_bytes

__all__ = ["first_problem", "read_bytes", "unknown_name"]


def unknown_name(kind: str, name: str, known: Iterable[str], meant: Sequence[str] = ()) -> UserError:
    """The error for a name that is not in `known`, with the nearest name that is. meant: a name of another program may
    stand for these, which come first."""
    names = sorted(known)
    near = [*meant, *difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)]
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UserError(f"unknown {kind} {name!r}: {hint}known: {', '.join(names)}")
