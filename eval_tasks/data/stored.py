"""Hugging Face data sets on disk, with the columns of lmms-eval's data sets: parquet files, or what `save_to_disk`
wrote."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError
from typing_extensions import TypedDict

from eval_tasks.config.validation import first_problem
from eval_tasks.data.hub import fetched
from eval_tasks.data.layout import Row, read_rows, refuse_duplicates, safe_name
from eval_tasks.data.rows import STATE, RowImage, column_names, read_columns
from eval_tasks.data.sample import Sample
from eval_tasks.data.scienceqa import asked, right_letter
from lvlm_radapt.utils.errors import UserError

_PLACES = ("", "data", "ScienceQA-IMG")
_Id = Annotated[str, Field(min_length=1)] | int
_Text = Annotated[str, Field(min_length=1)]


class _Answer(TypedDict):
    answer: str


class _Row(Row, ABC):
    """The columns of a task apart from `image`."""

    @abstractmethod
    def sample(self, where: str, number: int) -> tuple[str, str | None, tuple[str, ...]]:
        """(id, question, references) of the row, which is number `number` and stands at `where`."""


class _Coco(_Row):
    question_id: _Id
    answer: Annotated[list[str], Field(min_length=1)]

    def sample(self, where: str, number: int) -> tuple[str, str | None, tuple[str, ...]]:
        # COCO_val2014_000000000042.jpg is image 42, as in COCO's own file
        digits = re.search(r"(\d{1,18})(?:\.\w+)?$", str(self.question_id), re.ASCII)
        return str(int(digits[1])) if digits else str(self.question_id), None, _captions(where, self.answer)


class _Flickr(_Row):
    filename: _Text
    caption: Annotated[list[str], Field(min_length=1)]

    def sample(self, where: str, number: int) -> tuple[str, str | None, tuple[str, ...]]:
        return Path(self.filename).stem, None, _captions(where, self.caption)


class _Vqa(_Row):
    question_id: _Id
    question: _Text
    answers: Annotated[list[str] | list[_Answer], Field(min_length=10, max_length=10)]

    def sample(self, where: str, number: int) -> tuple[str, str | None, tuple[str, ...]]:
        texts = tuple(one if isinstance(one, str) else one["answer"] for one in self.answers)
        # VizWiz's are called as its images
        return re.sub(r"\.(jpg|png)$", "", str(self.question_id)), self.question, texts


class _Pope(_Row):
    question_id: _Id
    question: _Text
    answer: Literal["yes", "no"]
    category: Literal["random", "popular", "adversarial"]

    def sample(self, where: str, number: int) -> tuple[str, str | None, tuple[str, ...]]:
        return f"{self.category}/{self.question_id}", self.question, (self.answer,)


class _ScienceQA(_Row):
    question: _Text
    choices: Annotated[list[str], Field(min_length=2, max_length=26)]
    answer: int
    hint: str

    def sample(self, where: str, number: int) -> tuple[str, str | None, tuple[str, ...]]:
        letter = right_letter(where, self.answer, self.choices)
        return str(number), asked(self.question, self.choices, self.hint), (letter,)


# by task: the rows, and the split that is evaluated
_TASKS: dict[str, tuple[type[_Row], str]] = {
    "coco": (_Coco, "val"),
    "flickr30k": (_Flickr, "test"),
    "vqav2": (_Vqa, "validation"),
    "textvqa": (_Vqa, "validation"),
    "okvqa": (_Vqa, "val2014"),
    "vizwiz": (_Vqa, "val"),
    "pope": (_Pope, "test"),
    "scienceqa": (_ScienceQA, "test"),
}


class _Splits(Row):
    splits: Annotated[list[str], Field(min_length=1)]


@dataclass(frozen=True)
class StoredRows:
    """A data set on disk. kind: what it is called in messages. parts: split -> what `open_rows` takes."""

    folder: Path
    kind: str
    parts: dict[str, tuple[str, ...]]


def stored_rows(root: Path) -> StoredRows | None:
    """The data set in a data folder: what `save_to_disk` wrote, or parquet files in it, in its data/ or in
    ScienceQA-IMG/; None where there is neither. UserError for a damaged list of splits."""
    if (root / STATE).is_file():
        return StoredRows(root, "a saved data set", {"": (str(root),)})
    listed = root / "dataset_dict.json"
    if listed.is_file():
        names = read_rows(listed, _Splits).splits
        return StoredRows(root, "a saved data set", {name: (str(root / safe_name(listed, name)),) for name in names})
    for place in _PLACES:
        found = sorted(path for path in (root / place).glob("*.parquet") if path.is_file())
        if found:
            parts: dict[str, tuple[str, ...]] = {}
            for path in found:
                parts[_part(path)] = (*parts.get(_part(path), ()), str(path))
            return StoredRows(found[0].parent, "parquet files", parts)
    return None


def stored_layout(task: str) -> str:
    """The columns that the task wants, on one line; "" for tasks that stored data sets are not read for."""
    if task not in _TASKS:
        return ""
    rows, split = _TASKS[task]
    return (
        f"DIR/*.parquet or DIR/data/*.parquet, or what save_to_disk wrote to DIR (split {split}), with columns image, "
        f"{', '.join(rows.model_fields)}"
    )


def load_stored(task: str, stored: StoredRows) -> list[Sample]:
    """The task's samples from a data set on disk, in its order; images are read when they are opened.

    Of parquet files the library `datasets` writes a copy that can be read row by row into its own cache. Ids are those
    of the original annotation files where the columns tell them. UserError for missing columns, wrong types and
    duplicate ids.
    """
    folder = stored.folder
    if task not in _TASKS:
        raise UserError(f"{folder} holds {stored.kind}, which task {task} does not read: give it a folder of images")
    model, split = _TASKS[task]
    chosen = _of_split(stored, split)
    columns = column_names(chosen)
    missing = [name for name in ("image", *model.model_fields) if name not in columns]
    if missing:
        raise UserError(
            f"{stored.kind} in {folder}: no column {', '.join(missing)}; task {task} wants {stored_layout(task)}"
        )
    wanted = [*model.model_fields, *(["split"] if task == "flickr30k" and "split" in columns else [])]
    samples: list[Sample] = []
    for number, row in enumerate(read_columns(chosen, wanted)):
        if row.get("split", "test") != "test":  # Flickr30k's file holds Karpathy's other parts too
            continue
        where = f"{folder}, row {number}"
        own, question, references = _checked(model, row, where).sample(where, number)
        samples.append(Sample(own, RowImage(chosen, number, f"{where} ({own})"), question, references, len(samples)))
    if not samples:
        raise UserError(f"{stored.kind} in {folder}: no row of the split {split}")
    refuse_duplicates(folder, "id", (sample.id for sample in samples))
    return samples


def load_hub(task: str, data: str) -> list[Sample]:
    """The task's samples from a data set of the hub: the split that is evaluated is fetched, and nothing else. Errors
    as for `load_stored`, and for what cannot be fetched."""
    if task not in _TASKS:
        raise UserError(f"{data} is of the hub, from which task {task} does not read: give it a folder of images")
    stored = stored_rows(fetched(data, _TASKS[task][1], _PLACES))
    assert stored is not None  # `fetched` found parquet files
    return load_stored(task, stored)


def _checked(model: type[_Row], row: dict[str, Any], where: str) -> _Row:
    try:
        return model.model_validate(row)
    except ValidationError as error:
        raise UserError(f"{where}: {first_problem(error)}") from error


def _of_split(stored: StoredRows, split: str) -> tuple[str, ...]:
    """The rows of a split: all of them where there is one part only."""
    if len(stored.parts) == 1:
        return next(iter(stored.parts.values()))
    if split not in stored.parts:
        names = ", ".join(sorted(stored.parts))
        raise UserError(f"{stored.folder} holds {stored.kind} of {names}, not of the split {split}")
    return stored.parts[split]


def _part(path: Path) -> str:
    """`val` of val-00000-of-00002.parquet."""
    return path.stem.partition("-")[0]


def _captions(where: str, captions: Sequence[str]) -> tuple[str, ...]:
    kept = tuple(caption.strip() for caption in captions)
    if not any(kept):
        raise UserError(f"{where} has no caption")
    return kept
