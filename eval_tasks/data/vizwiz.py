"""VizWiz-VQA's validation questions as stored at vizwiz.org."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import Field, RootModel
from typing_extensions import TypedDict

from eval_tasks.data.layout import (
    ImageFolders,
    Row,
    data_folder,
    read_rows,
    refuse_duplicates,
    required_file,
    safe_name,
)
from eval_tasks.data.loader import reads
from eval_tasks.data.sample import Sample
from lvlm_radapt.utils.errors import UserError

FILE = "val.json"
VIZWIZ_LAYOUT = (
    f"DIR/{FILE} (or DIR/annotations/{FILE}) and the images as DIR/val/VizWiz_val_00000000.jpg (or in DIR/images/ or "
    "DIR/)"
)
_FOLDERS = ("val", "images", "")


class _Answer(TypedDict):
    answer: str


class _Question(Row):
    image: str
    question: Annotated[str, Field(min_length=1)]
    answers: Annotated[list[_Answer], Field(min_length=10, max_length=10)]


class _File(RootModel[list[_Question]]):
    pass


@reads(VIZWIZ_LAYOUT)
def load_vizwiz(data_dir: str | os.PathLike[str]) -> list[Sample]:
    """All questions in file order, one an image, id = the image's name without suffix, with their 10 answers.

    Questions that nobody could answer stay in: their answer is "unanswerable".
    Raises UserError (one line) for a folder or file that is missing or malformed.
    """
    root = data_folder("vizwiz", data_dir, VIZWIZ_LAYOUT)
    path = required_file("vizwiz", root, FILE, VIZWIZ_LAYOUT, folders=("annotations", "Annotations"))
    rows = read_rows(path, _File).root
    if not rows:
        raise UserError(f"{path}: the list of questions is empty")
    ids = [Path(safe_name(path, row.image)).stem for row in rows]
    refuse_duplicates(path, "image", ids)
    folders = ImageFolders(root, _FOLDERS)
    return [
        Sample(
            id=ids[position],
            image=folders.find([row.image]),
            question=row.question,
            references=tuple(answer["answer"] for answer in row.answers),
            position=position,
        )
        for position, row in enumerate(rows)
    ]
