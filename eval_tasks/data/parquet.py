"""Hugging Face data sets on disk: parquet files with the columns of lmms-eval's data sets."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError
from typing_extensions import TypedDict

from eval_tasks.data.layout import Row, refuse_duplicates
from eval_tasks.data.rows import RowImage, open_rows
from eval_tasks.data.sample import Sample
from eval_tasks.data.scienceqa import asked, right_letter
from eval_tasks.validation import first_problem
from lvlm_radapt.errors import UserError

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


def parquet_files(root: Path) -> list[Path]:
    """The parquet files of a data folder, sorted: in it, in its data/ or in ScienceQA-IMG/; [] where there are none."""
    for place in _PLACES:
        found = sorted(path for path in (root / place).glob("*.parquet") if path.is_file())
        if found:
            return found
    return []


def parquet_layout(task: str) -> str:
    """The columns that the task wants, on one line; "" for tasks that parquet files are not read for."""
    if task not in _TASKS:
        return ""
    rows, split = _TASKS[task]
    return f"DIR/*.parquet or DIR/data/*.parquet (split {split}) with columns image, {', '.join(rows.model_fields)}"


def load_parquet(task: str, files: Sequence[Path]) -> list[Sample]:
    """The task's samples from parquet files, in their order; images are read when they are opened.

    The library `datasets` writes a copy that can be read row by row into its own cache. Ids are those of the original
    annotation files where the columns tell them. UserError for missing columns, wrong types and duplicate ids.
    """
    folder = files[0].parent
    if task not in _TASKS:
        raise UserError(f"{folder} holds parquet files, which task {task} does not read: give it a folder of images")
    model, split = _TASKS[task]
    chosen = tuple(str(path) for path in _of_split(files, split))
    table = open_rows(chosen)
    missing = [name for name in ("image", *model.model_fields) if name not in table.column_names]
    if missing:
        raise UserError(
            f"the parquet files in {folder} have no column {', '.join(missing)}; task {task} wants "
            f"{parquet_layout(task)}"
        )
    wanted = [*model.model_fields, *(["split"] if task == "flickr30k" and "split" in table.column_names else [])]
    samples: list[Sample] = []
    for number, row in enumerate(table.select_columns(wanted).to_list()):
        if row.get("split", "test") != "test":  # Flickr30k's file holds Karpathy's other parts too
            continue
        where = f"{folder}, row {number}"
        own, question, references = _checked(model, row, where).sample(where, number)
        samples.append(Sample(own, RowImage(chosen, number, f"{where} ({own})"), question, references, len(samples)))
    if not samples:
        raise UserError(f"the parquet files in {folder} hold no row of the split {split}")
    refuse_duplicates(folder, "id", (sample.id for sample in samples))
    return samples


def _checked(model: type[_Row], row: dict[str, Any], where: str) -> _Row:
    try:
        return model.model_validate(row)
    except ValidationError as error:
        raise UserError(f"{where}: {first_problem(error)}") from error


def _of_split(files: Sequence[Path], split: str) -> list[Path]:
    """The files of a split: all of them where their names tell of one split only."""
    names = sorted({part_of(path) for path in files})
    if len(names) == 1:
        return list(files)
    if split not in names:
        raise UserError(f"{files[0].parent} holds parquet files of {', '.join(names)}, not of the split {split}")
    return [path for path in files if part_of(path) == split]


def part_of(path: Path) -> str:
    """`val` of val-00000-of-00002.parquet."""
    return path.stem.partition("-")[0]


def _captions(where: str, captions: Sequence[str]) -> tuple[str, ...]:
    kept = tuple(caption.strip() for caption in captions)
    if not any(kept):
        raise UserError(f"{where} has no caption")
    return kept
