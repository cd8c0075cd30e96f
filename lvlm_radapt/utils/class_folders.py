"""A folder of images for each class, as torchvision's `ImageFolder` lays images out, and the classes' names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.images import SUFFIXES
from lvlm_radapt.utils.json_files import read_bytes

LAYOUT = (
    "a folder of images for each class, DIR/CLASS/*.png, and if the folders' names are no class names "
    'DIR/classnames.json {"CLASS": "name"} or DIR/classnames.txt (lines "CLASS name")'
)
_NAMES_JSON, _NAMES_TEXT = "classnames.json", "classnames.txt"


def class_folders(root: Path, skipped: Sequence[str] = ()) -> dict[str, list[tuple[str, Path]]]:
    """(id, image) of every image by class folder, in order; `skipped`: folders that are no class.

    UserError for fewer than two class folders, one without images, and two images of one id."""
    folders = [path.name for path in _listed(root) if path.is_dir() and path.name not in skipped]
    if len(folders) < 2:
        raise UserError(f"{root} has {len(folders)} class folders, two are the least; wanted: {LAYOUT}")
    found = {}
    for folder in folders:
        files = [f for f in _listed(root / folder) if f.suffix.lower() in SUFFIXES and f.is_file()]
        if not files:
            raise UserError(f"class folder {root / folder} holds no images: fill it or remove it")
        ids = [f"{folder}/{file.stem}" for file in files]
        twice = next((i for i in ids if ids.count(i) > 1), None) if len(set(ids)) < len(ids) else None
        if twice is not None:
            raise UserError(f"{root}: two images are called {twice} but for their suffix: rename one")
        found[folder] = list(zip(ids, files, strict=True))
    return found


def named_classes(root: Path, folders: Sequence[str]) -> dict[str, str]:
    """Folder -> class name, from a file of names or from the folder. UserError unless each has a name of its own."""
    where, given = given_names(root)
    if where is None:
        names = {folder: folder.replace("_", " ").strip() for folder in folders}
    else:
        without = [folder for folder in folders if not given.get(folder, "").strip()]
        if without:
            raise UserError(f"{where}: class folder {without[0]!r} has no name there (and {len(without) - 1} more)")
        names = {folder: given[folder].strip() for folder in folders}
    refuse_twins(where or root, names)
    return names


def refuse_twins(where: Path, names: Mapping[str, str]) -> None:
    """UserError where two class folders have the same name."""
    seen: dict[str, str] = {}
    for folder, name in names.items():
        if name in seen:
            raise UserError(
                f"{where}: class folders {seen[name]!r} and {folder!r} are both called {name!r}: no text tells "
                "them apart"
            )
        seen[name] = folder


def given_names(root: Path) -> tuple[Path | None, dict[str, str]]:
    """(the file, folder -> name); (None, {}) where there is no file. Names of absent folders do no harm: a subset of
    a data set is a data set."""
    path = root / _NAMES_JSON
    if path.is_file():
        try:
            content = json.loads(read_bytes(path))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is no JSON file: {error}") from error
        if not isinstance(content, dict) or not all(isinstance(name, str) for name in content.values()):
            raise UserError(f'{path} must be a JSON object {{"CLASS": "name"}}')
        return path, content
    path = root / _NAMES_TEXT
    if not path.is_file():
        return None, {}
    try:
        lines = read_bytes(path).removeprefix(b"\xef\xbb\xbf").decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    pairs = [line.strip().partition(" ")[::2] for line in lines if line.strip()]
    bad = next((pair for pair in pairs if not pair[1].strip()), None)
    if bad is not None:
        raise UserError(f"{path}: {bad[0]!r} has no name behind it; a line is: CLASS name")
    return path, dict(pairs)


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror or error}") from error
