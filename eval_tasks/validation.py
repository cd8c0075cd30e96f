"""One-line messages for what a user got wrong in a file or a name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from lvlm_radapt.errors import UserError


def first_problem(error: ValidationError) -> str:
    """The first problem pydantic found, with its field, on one line, and how many more there are."""
    problem = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in problem["loc"])
    more = error.error_count() - 1
    text = (f"field {field}: " if field else "") + problem["msg"] + (f" (and {more} more)" if more else "")
    return " ".join(text.split())


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that is not in `known`, with the nearest name that is."""
    names = sorted(known)
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UserError(f"unknown {kind} {name!r}: {hint}known: {', '.join(names)}")


def read_bytes(path: Path) -> bytes:
    """The file's content; UserError naming the file when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
