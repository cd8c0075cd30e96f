"""POPE: is there such a thing in the image? Three question files on COCO val2014 (arXiv 2305.10355)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from eval_tasks.data.layout import ImageFolders, Row, data_folder, read_lines, refuse_duplicates, safe_name
from eval_tasks.data.loader import reads
from eval_tasks.data.sample import Sample
from lvlm_radapt.utils.errors import UserError

PARTS = ("random", "popular", "adversarial")
POPE_LAYOUT = (
    "DIR/coco_pope_random.json, DIR/coco_pope_popular.json, DIR/coco_pope_adversarial.json (or .jsonl; a question a "
    "line) and the images as DIR/val2014/COCO_val2014_000000000042.jpg (or in DIR/images/ or DIR/)"
)
_FOLDERS = ("val2014", "images", "")


class _Question(Row):
    question_id: int
    image: str
    text: Annotated[str, Field(min_length=1)]
    label: Literal["yes", "no"]


@reads(POPE_LAYOUT)
def load_pope(data_dir: str | os.PathLike[str]) -> list[Sample]:
    """The questions of all three files, id PART/question_id, with "yes" or "no" as the one reference.

    All three are wanted: the score is a mean over them. Raises UserError (one line) for a folder or file that is
    missing or malformed.
    """
    root = data_folder("pope", data_dir, POPE_LAYOUT)
    paths = {part: _file(root, part) for part in PARTS}
    folders = ImageFolders(root, _FOLDERS)
    samples: list[Sample] = []
    for part, path in paths.items():
        rows = read_lines(path, _Question)
        if not rows:
            raise UserError(f"{path} holds no question")
        refuse_duplicates(path, "question_id", (row.question_id for row in rows))
        samples += [
            Sample(
                id=f"{part}/{row.question_id}",
                image=folders.find([safe_name(path, row.image)]),
                question=row.text,
                references=(row.label,),
                position=len(samples) + at,
            )
            for at, row in enumerate(rows)
        ]
    return samples


def _file(root: Path, part: str) -> Path:
    for folder in (root, root / "annotations", root / "coco"):
        for suffix in (".json", ".jsonl"):
            path = folder / f"coco_pope_{part}{suffix}"
            if path.is_file():
                return path
    raise UserError(f"coco_pope_{part}.json is not in {root}; task pope wants {POPE_LAYOUT}")
