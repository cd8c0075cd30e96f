"""Images with a class in rows, as the Hugging Face hub holds data sets for classification."""

from __future__ import annotations

from typing import Any

from eval_tasks.data.rows import RowImage, open_rows
from eval_tasks.data.set_config import SetConfig
from eval_tasks.data.stored import StoredRows
from eval_tasks.data.torchvision_layouts import Labelled
from lvlm_radapt.utils.errors import UserError

_LABELS = ("label", "fine_label", "labels", "cls")
_PARTS = ("test", "val", "valid", "validation")


def labelled_rows(task: str, stored: StoredRows, config: SetConfig) -> list[Labelled]:
    """The rows of the part that is evaluated: test, else val, else all there is.

    A class's key is its label's name where the file tells it (`ClassLabel`), else its number. UserError for rows
    without image and label, for labels that are hidden (-1), and for numbers that no one names.
    """
    folder, parts = stored.folder, sorted(stored.parts)
    part = next((name for name in _PARTS if name in parts), parts[0])
    if part not in _PARTS and len(parts) > 1:
        raise UserError(f"{folder} holds {stored.kind} of {', '.join(parts)}: task {task} is scored on test or val")
    chosen = stored.parts[part]
    table = open_rows(chosen)
    column = next((name for name in _LABELS if name in table.column_names), None)
    if column is None or "image" not in table.column_names:
        raise UserError(
            f"the {stored.kind} in {folder} have columns {', '.join(table.column_names)}; task {task} wants image and "
            "label"
        )
    keys = _keys(task, table.features[column], config)
    found = []
    for row, label in enumerate(table[column]):
        where = f"{folder}, row {row}"
        found.append(Labelled(str(row), RowImage(chosen, row, where), _key(label, keys, where)))
    if not found:
        raise UserError(f"the {stored.kind} in {folder} hold no rows")
    return found


def _keys(task: str, feature: Any, config: SetConfig) -> list[str] | None:
    """The key of each label; None where a label is its own."""
    told = getattr(feature, "names", None)
    known = [*config.names]
    if told is None:
        # the order of ImageNet's labels is that of its WordNet ids, everywhere
        return known if task == "imagenet" and str(getattr(feature, "dtype", "")).startswith("int") else None
    names = [str(name) for name in told]
    # "tench, Tinca tinca": the hub's ImageNet, whose first words are not all distinct
    if task == "imagenet" and len(names) == len(known) and config.named(names[0]) is None:
        first, last = config.names[known[0]], config.names[known[-1]]
        if first.casefold() in names[0].casefold() and last.casefold() in names[-1].casefold():
            return known
    return names


def _key(label: object, keys: list[str] | None, where: str) -> str:
    if isinstance(label, str) and label:
        return label
    if not isinstance(label, int):
        raise UserError(f"{where} has the label {label!r}: a number or a name is wanted")
    if keys is None and label >= 0:
        return str(label)
    if keys is None or not 0 <= label < len(keys):
        raise UserError(f"{where} has the label {label}, which is no class: take a part whose labels are public")
    return keys[label]
