"""The field's zero-shot data sets: class folders, their authors' own layouts, or parquet files of the hub.

Class names come from, in this order: classnames.json or classnames.txt in the data folder; `configs/zero_shot`, by the
key of the class on disk; that key itself, written as words.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from eval_tasks.data.labelled_rows import labelled_rows
from eval_tasks.data.layout import data_folder, refuse_duplicates
from eval_tasks.data.loader import Loader
from eval_tasks.data.sample import Sample
from eval_tasks.data.set_config import SetConfig, set_config, zero_shot_sets
from eval_tasks.data.stored import stored_rows
from eval_tasks.data.torchvision_layouts import READERS, Labelled, read_layout
from lvlm_radapt.utils.class_folders import class_folders, given_names, refuse_twins
from lvlm_radapt.utils.errors import UserError

# Where class folders may lie below the data folder: what the archives unpack to, and the part that is evaluated.
_FOLDERS: dict[str, tuple[str, ...]] = {
    "eurosat": ("eurosat/2750", "2750"),
    "caltech101": ("caltech101/101_ObjectCategories", "101_ObjectCategories"),
    "caltech256": ("caltech256/256_ObjectCategories", "256_ObjectCategories"),
    "tiny-imagenet": ("tiny-imagenet-200/val",),
}
_PARTS = ("test", "val", "valid", "validation")
_NO_CLASS = {"caltech101": ("BACKGROUND_Google",)}
_CODE = re.compile(r"n\d{8}|\d+")  # keys that tell nobody anything


def zero_shot_layout(task: str) -> str:
    """The files that the task reads, on one line."""
    folders = [f"DIR/{folder}" for folder in (*_FOLDERS.get(task, ()), *_PARTS[:2], "")]
    places = ", ".join(folder.rstrip("/") for folder in folders)
    own = f"; or {READERS[task][1]}" if task in READERS else ""
    return (
        f"a folder of images for each class in {places}{own}; or DIR/*.parquet or DIR/data/*.parquet, or what "
        "save_to_disk wrote to DIR, with columns image and label; class names, where others are wanted, in "
        'DIR/classnames.json {"CLASS": "name"}'
    )


def load_zero_shot(task: str, data_dir: str | os.PathLike[str]) -> list[Sample]:
    """The images of a set, the class's name as the one reference; the part that is evaluated is `test` where it has
    labels, else `val`, else everything.

    UserError for a folder without the set, for classes whose names nobody tells, and for two classes of one name.
    """
    root = data_folder(task, data_dir, zero_shot_layout(task))
    config = set_config(task)
    stored = stored_rows(root)
    found = labelled_rows(task, stored, config) if stored else read_layout(task, root) or _folders(task, root)
    names = _names(task, root, config, list(dict.fromkeys(one.key for one in found)))
    refuse_duplicates(root, "image", (one.id for one in found))
    return [
        Sample(id=one.id, image=one.image, question=None, references=(names[one.key],), position=position)
        for position, one in enumerate(found)
    ]


def _folders(task: str, root: Path) -> list[Labelled]:
    """The images in class folders, wherever those lie."""
    places = [root / folder for folder in _FOLDERS.get(task, ())] + [root]
    for place in places:
        part = next((place / name for name in _PARTS if _has_classes(place / name)), place)
        if _has_classes(part):
            skipped = _NO_CLASS.get(task, ())
            return [
                Labelled(own, file, folder)
                for folder, files in class_folders(part, skipped).items()
                for own, file in files
            ]
    raise UserError(f"{root} holds no class folders; task {task} wants {zero_shot_layout(task)}")


def _has_classes(folder: Path) -> bool:
    """Whether class folders are in there, and not the parts of a data set."""
    if not folder.is_dir():
        return False
    inside = {path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}
    return len(inside) >= 2 and not inside <= {*_PARTS, "train", "trainval"}


def _names(task: str, root: Path, config: SetConfig, keys: Sequence[str]) -> dict[str, str]:
    """Key -> class name; UserError where one has none, or two have the same."""
    if len(keys) < 2:
        raise UserError(f"{root} has images of {len(keys)} class, two are the least")
    where, given = given_names(root)
    table = set_config("imagenet") if task == "tiny-imagenet" else config
    words = _words(root) if task == "tiny-imagenet" else {}
    names: dict[str, str] = {}
    for key in keys:
        name = given.get(key, "").strip() or table.named(key) or words.get(key) or _readable(task, key)
        if name is None:
            raise UserError(
                f"{root}: nobody tells the name of class {key!r} of {task}: put a classnames.txt there (lines "
                '"CLASS name")'
            )
        names[key] = name
    refuse_twins(where or root, names)
    return names


def _readable(task: str, key: str) -> str | None:
    """The key as words; None for a number or a WordNet id."""
    if _CODE.fullmatch(key):
        return None
    if task == "caltech256":  # 009.bear, 251.airplanes-101: the latter came from Caltech-101
        key = re.sub(r"^\d+\.|-101$", "", key).replace("-", " ")
    elif task == "sun397":
        key = key.replace("/", " ")
    elif task == "oxford-pets":
        key = " ".join(part.title() for part in key.split("_"))
    return " ".join(key.replace("_", " ").split()) or None


def _words(root: Path) -> dict[str, str]:
    """WordNet id -> its first name, of Tiny ImageNet's own list; {} where that is not there."""
    path = next(
        (path for path in (root / "words.txt", root / "tiny-imagenet-200" / "words.txt") if path.is_file()), None
    )
    if path is None:
        return {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    pairs = [line.partition("\t")[::2] for line in lines]
    return {key.strip(): names.split(",")[0].strip() for key, names in pairs if names.strip()}


LOADERS = {name: Loader(partial(load_zero_shot, name), zero_shot_layout(name)) for name in zero_shot_sets()}
"""By task: what its class names and layouts are is in `configs/zero_shot`."""
