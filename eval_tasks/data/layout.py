"""Finding and reading the files of a data folder; every complaint names the file and what was expected."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from eval_tasks.config.validation import first_problem, read_bytes
from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.names import can_be_a_file, leaves_folder


class Row(BaseModel):
    """Base of all rows read: types are not coerced, fields we do not use are not looked at."""

    model_config = ConfigDict(strict=True, extra="ignore")


RowT = TypeVar("RowT", bound=BaseModel)


def data_folder(task: str, data_dir: str | os.PathLike[str], layout: str) -> Path:
    """The folder, known to exist and to hold something; UserError with the layout wanted otherwise."""
    root = Path(data_dir)
    if not root.exists():
        raise UserError(f"data folder {root} does not exist; task {task} wants {layout}")
    if not root.is_dir():
        raise UserError(f"{root} is a file, not a data folder; task {task} wants {layout}")
    try:
        empty = next(root.iterdir(), None) is None
    except OSError as error:
        raise UserError(f"cannot read data folder {root}: {error.strerror or error}") from error
    if empty:
        raise UserError(f"data folder {root} is empty; task {task} wants {layout}")
    return root


def required_file(task: str, root: Path, name: str, layout: str, *, folders: Sequence[str] = ("annotations",)) -> Path:
    """`root/name` or the same in one of `folders`; UserError with the layout wanted when it is nowhere."""
    for path in (root / name, *(root / folder / name for folder in folders)):
        if path.is_file():
            return path
    raise UserError(f"{name} is not in {root}; task {task} wants {layout}")


def read_rows(path: Path, model: type[RowT]) -> RowT:
    """The JSON file as `model`; UserError naming file and field when it is not JSON or a type is wrong."""
    content = read_bytes(path).removeprefix(b"\xef\xbb\xbf")
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        raise UserError(f"{path}: {first_problem(error)}") from error


def read_lines(path: Path, model: type[RowT]) -> list[RowT]:
    """The file's lines, a JSON object each; UserError naming file, line and field for one that is wrong."""
    rows = []
    for number, line in enumerate(read_bytes(path).removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(model.model_validate_json(line))
        except ValidationError as error:
            raise UserError(f"{path}, line {number}: {first_problem(error)}") from error
    return rows


def refuse_duplicates(path: Path, what: str, ids: Iterable[object]) -> None:
    """UserError when an id comes twice: scores would count one sample twice."""
    seen: set[object] = set()
    twice: list[object] = []
    for value in ids:
        if value in seen:
            twice.append(value)
        seen.add(value)
    if twice:
        raise UserError(f"{path}: {what} {twice[0]!r} occurs more than once{_others(len(twice))}")


def refuse_unmatched(path: Path, ids: Iterable[object], known: Iterable[object], complaint: str) -> None:
    """UserError naming the first of `ids` that is not in `known`, and how many more there are."""
    have = set(known)
    lost = [value for value in dict.fromkeys(ids) if value not in have]
    if lost:
        raise UserError(f"{path}: {complaint} {lost[0]!r}{_others(len(lost))}")


def _others(count: int) -> str:
    return f" (and {count - 1} more)" if count > 1 else ""


def safe_name(path: Path, name: str) -> str:
    """A file name an annotation gives, refused when it could point outside the data folder."""
    if leaves_folder(name):
        raise UserError(f"{path}: image name {_short(name)} does not stay inside the data folder; use relative names")
    if not can_be_a_file(name):
        raise UserError(
            f"{path}: image name {_short(name)} can be no file's: it is too long or holds control characters"
        )
    return name


def _short(name: str) -> str:
    return repr(name if len(name) <= 80 else name[:77] + "...")


class ImageFolders:
    """The folders images may lie in, listed once: 200,000 look-ups must not touch the disk each."""

    def __init__(self, root: Path, folders: Sequence[str]) -> None:
        """`folders` are relative to `root`, the preferred one first; absent ones are passed over."""
        wanted = [root / folder for folder in dict.fromkeys(folders)]
        try:
            self._listed = {folder: set(os.listdir(folder)) for folder in wanted if folder.is_dir()}
        except OSError as error:
            raise UserError(f"cannot read image folder {error.filename}: {error.strerror or error}") from error
        self._preferred = next(iter(self._listed), wanted[0])

    def find(self, names: Sequence[str]) -> Path:
        """The first of `names` that exists in some folder, else where the first one was expected to be."""
        for folder, present in self._listed.items():
            for name in names:
                if name in present or ("/" in name and (folder / name).is_file()):
                    return folder / name
        return self._preferred / names[0]
