"""VQAv2's validation questions as stored at visualqa.org."""

from __future__ import annotations

import os
from typing import Annotated

from pydantic import Field
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12, and brings it

from eval_tasks.data.layout import (
    ImageFolders,
    Row,
    data_folder,
    read_rows,
    refuse_duplicates,
    refuse_unmatched,
    required_file,
)
from eval_tasks.data.loader import reads
from eval_tasks.data.sample import Sample
from lvlm_radapt.utils.errors import UserError

QUESTIONS = "v2_OpenEnded_mscoco_val2014_questions.json"
ANNOTATIONS = "v2_mscoco_val2014_annotations.json"
VQAV2_LAYOUT = (
    f"DIR/{QUESTIONS}, DIR/{ANNOTATIONS} and the images as DIR/val2014/COCO_val2014_000000000042.jpg "
    "(or .png, or in DIR/images/ or DIR/)"
)
_FOLDERS = ("val2014", "images", "")

ImageNumber = Annotated[int, Field(ge=0, lt=10**18)]


class _Question(Row):
    question_id: int
    image_id: ImageNumber
    question: Annotated[str, Field(min_length=1)]


class _QuestionFile(Row):
    questions: list[_Question]


class _Answer(TypedDict):
    # There are two million of them: plain dicts are read several times faster than models.
    answer: str


class _Annotation(Row):
    question_id: int
    image_id: ImageNumber
    # The score is a mean over ten leave-one-out subsets, so it exists for ten answers only.
    answers: Annotated[list[_Answer], Field(min_length=10, max_length=10)]


class _AnnotationFile(Row):
    annotations: list[_Annotation]


def coco_names(image_id: int) -> list[str]:
    """File names under which a COCO image may lie: the 2014 name, the padded number, the plain number."""
    stems = (f"COCO_val2014_{image_id:012d}", f"{image_id:012d}", str(image_id))
    return [stem + suffix for stem in stems for suffix in (".jpg", ".png")]


@reads(VQAV2_LAYOUT)
def load_vqav2(data_dir: str | os.PathLike[str]) -> list[Sample]:
    """All questions in file order, id = question_id, with their 10 answers as written."""
    return load_questions("vqav2", data_dir, QUESTIONS, ANNOTATIONS, VQAV2_LAYOUT)


def load_questions(
    task: str, data_dir: str | os.PathLike[str], questions_file: str, annotations_file: str, layout: str
) -> list[Sample]:
    """The questions of two files of VQAv2's shape, on COCO images.

    Raises UserError (one line) for a missing or malformed file, or when the two files do not fit together.
    """
    root = data_folder(task, data_dir, layout)
    asked = required_file(task, root, questions_file, layout)
    answered = required_file(task, root, annotations_file, layout)
    questions = read_rows(asked, _QuestionFile).questions
    annotations = read_rows(answered, _AnnotationFile).annotations
    if not questions:
        raise UserError(f"{asked}: the list of questions is empty")
    refuse_duplicates(asked, "question_id", (row.question_id for row in questions))
    refuse_duplicates(answered, "question_id", (row.question_id for row in annotations))
    by_id = {row.question_id: row for row in annotations}
    refuse_unmatched(
        answered, (row.question_id for row in questions), by_id, "no answers for the question with question_id"
    )
    refuse_unmatched(
        asked, by_id, (row.question_id for row in questions), "no question for the answers with question_id"
    )
    folders = ImageFolders(root, _FOLDERS)
    images = {number: folders.find(coco_names(number)) for number in {row.image_id for row in questions}}
    samples = []
    for position, row in enumerate(questions):
        annotation = by_id[row.question_id]
        if annotation.image_id != row.image_id:
            raise UserError(
                f"{answered}: question {row.question_id} is about image {annotation.image_id} here but about "
                f"{row.image_id} in {asked.name}"
            )
        samples.append(
            Sample(
                id=str(row.question_id),
                image=images[row.image_id],
                question=row.question,
                references=tuple(answer["answer"] for answer in annotation.answers),
                position=position,
            )
        )
    return samples
