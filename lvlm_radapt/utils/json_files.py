"""JSON files that people hold: read and checked, and told in one line where something is wrong."""

from __future__ import annotations

import json
import math
import stat
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from lvlm_radapt.utils.errors import UserError

_DEEPEST = 100
Model = TypeVar("Model", bound=BaseModel)


def read_bytes(path: Path) -> bytes:
    """The file's content; UserError naming the file when it cannot be read or is no regular file."""
    check_regular(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def check_regular(path: Path) -> None:
    """UserError unless there is a regular file to be read, or a link to one: nothing is read from a pipe or a device,
    which could block or never end."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise UserError(f"cannot read {path}: {reason or error}") from error
    if not stat.S_ISREG(mode):
        raise UserError(f"cannot read {path}: it is {'a folder' if stat.S_ISDIR(mode) else 'no regular file'}")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in the file; UserError when it cannot be read, is no JSON, or holds something else."""
    text = read_bytes(path)
    try:
        content = json.loads(text, parse_constant=_no_number, parse_float=_finite)
    except _NoNumber as error:
        raise UserError(f"{path} is damaged: {error} is no number of JSON") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: it is no JSON file") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: it is no JSON object")
    if _depth(content) > _DEEPEST:
        raise UserError(f"{path} is damaged: it is nested more than {_DEEPEST} deep")
    return content


class _NoNumber(ValueError):
    pass


def _no_number(text: str) -> float:
    raise _NoNumber(text[:40])


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text)


def _depth(content: Any) -> int:
    """How deep dictionaries and lists are nested: what is deeper than Python's stack ends in no error of one line."""
    level, inside = 0, [content]
    while inside:
        level += 1
        holders = [one for one in inside if isinstance(one, dict | list)]
        inside = [part for one in holders for part in (one.values() if isinstance(one, dict) else one)]
    return level


def read_own(kind: type[Model], path: Path, *, format: str, version: int) -> Model:
    """A file that this program wrote, as `kind`; UserError when it says that it is of another format or version."""
    content = read_json(path)
    if content.get("format") != format:
        raise UserError(f"{path} is damaged: it does not say that it is an {format}")
    if content.get("version") != version:
        raise UserError(
            f"{path} has format version {content.get('version')!r}, this program reads {version}: update it"
        )
    return validated(kind, content, path)


def validated(kind: type[Model], content: Any, path: Path) -> Model:
    """`content`, which stands in the file, as `kind`; UserError naming the file and the first field that is wrong."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{path} is damaged: {first_problem(error)}") from error


def first_problem(error: ValidationError) -> str:
    """The first problem pydantic found, with its field, on one line, and how many more there are."""
    problem = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in problem["loc"])
    more = error.error_count() - 1
    told = problem["msg"].removeprefix("Value error, ")
    text = (f"field {field}: " if field else "") + told + (f" (and {more} more)" if more else "")
    return " ".join(text.split())
