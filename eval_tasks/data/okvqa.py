"""OK-VQA's questions as stored at okvqa.allenai.org: files of VQAv2's shape, on COCO val2014."""

from __future__ import annotations

import os

from eval_tasks.data.loader import reads
from eval_tasks.data.sample import Sample
from eval_tasks.data.vqav2 import load_questions

QUESTIONS = "OpenEnded_mscoco_val2014_questions.json"
ANNOTATIONS = "mscoco_val2014_annotations.json"
OKVQA_LAYOUT = (
    f"DIR/{QUESTIONS}, DIR/{ANNOTATIONS} and the images as DIR/val2014/COCO_val2014_000000000042.jpg "
    "(or .png, or in DIR/images/ or DIR/)"
)


@reads(OKVQA_LAYOUT)
def load_okvqa(data_dir: str | os.PathLike[str]) -> list[Sample]:
    """All questions in file order, id = question_id, with their 10 answers (5 people's, each twice) as written."""
    return load_questions("okvqa", data_dir, QUESTIONS, ANNOTATIONS, OKVQA_LAYOUT)
