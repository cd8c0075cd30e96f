"""TextVQA's validation questions as stored at textvqa.org (no OCR tokens are used)."""

from __future__ import annotations

import os
from typing import Annotated

from pydantic import Field

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
from eval_tasks.data.vqav2 import ImageNumber, coco_names
from lvlm_radapt.utils.errors import UserError

FILE = "TextVQA_0.5.1_val.json"
TEXTVQA_LAYOUT = (
    f"DIR/{FILE} and the images as DIR/train_images/IMAGE_ID.jpg (or .png, or in DIR/images/, DIR/val2014/ or DIR/)"
)
_FOLDERS = ("train_images", "images", "val2014", "")


class _Question(Row):
    question_id: int
    image_id: Annotated[str, Field(min_length=1)] | ImageNumber
    question: Annotated[str, Field(min_length=1)]
    answers: Annotated[list[str], Field(min_length=10, max_length=10)]


class _File(Row):
    data: list[_Question]


@reads(TEXTVQA_LAYOUT)
def load_textvqa(data_dir: str | os.PathLike[str]) -> list[Sample]:
    """All questions in file order, id = question_id, with their 10 answers as written.

    Raises UserError (one line) for a folder or file that is missing or malformed.
    """
    root = data_folder("textvqa", data_dir, TEXTVQA_LAYOUT)
    path = required_file("textvqa", root, FILE, TEXTVQA_LAYOUT)
    rows = read_rows(path, _File).data
    if not rows:
        raise UserError(f"{path}: the list of questions is empty")
    refuse_duplicates(path, "question_id", (row.question_id for row in rows))
    folders = ImageFolders(root, _FOLDERS)
    samples = []
    for position, row in enumerate(rows):
        stem = safe_name(path, str(row.image_id))
        names = [stem + ".jpg", stem + ".png"]
        if isinstance(row.image_id, int):
            names += coco_names(row.image_id)
        samples.append(
            Sample(
                id=str(row.question_id),
                image=folders.find(names),
                question=row.question,
                references=tuple(row.answers),
                position=position,
            )
        )
    return samples
