"""ScienceQA's test questions with an image (arXiv 2209.09513), multiple choice."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, RootModel

from eval_tasks.data.layout import (
    ImageFolders,
    Row,
    data_folder,
    read_rows,
    refuse_duplicates,
    refuse_unmatched,
    required_file,
    safe_name,
)
from eval_tasks.data.loader import reads
from eval_tasks.data.sample import Sample
from lvlm_radapt.utils.errors import UserError

SCIENCEQA_LAYOUT = (
    "DIR/problems.json, DIR/pid_splits.json (test part used) and the images as DIR/images/test/ID/image.png (or "
    "DIR/test/ID/image.png)"
)
_FOLDERS = ("images/test", "test", "images", "")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class _Problem(Row):
    question: Annotated[str, Field(min_length=1)]
    choices: Annotated[list[str], Field(min_length=2, max_length=len(_LETTERS))]
    answer: Annotated[int, Field(ge=0)]
    hint: str = ""
    image: str | None = None


class _Problems(RootModel[dict[str, _Problem]]):
    pass


class _Splits(Row):
    test: list[str]


@reads(SCIENCEQA_LAYOUT)
def load_scienceqa(data_dir: str | os.PathLike[str]) -> list[Sample]:
    """The test part's questions that have an image, in its order; the reference is the right option's letter.

    Raises UserError (one line) for a folder or file that is missing or malformed.
    """
    root = data_folder("scienceqa", data_dir, SCIENCEQA_LAYOUT)
    path = required_file("scienceqa", root, "problems.json", SCIENCEQA_LAYOUT)
    split = required_file("scienceqa", root, "pid_splits.json", SCIENCEQA_LAYOUT)
    problems = read_rows(path, _Problems).root
    ids = read_rows(split, _Splits).test
    refuse_duplicates(split, "problem", ids)
    refuse_unmatched(path, ids, problems, f"not there, but in {split.name}: problem")
    folders = ImageFolders(root, _FOLDERS)
    samples: list[Sample] = []
    for own in ids:
        problem = problems[own]
        if problem.image is None:
            continue
        samples.append(
            Sample(
                id=own,
                image=folders.find([safe_name(path, f"{own}/{problem.image}")]),
                question=asked(problem.question, problem.choices, problem.hint),
                references=(right_letter(f"{path}: problem {own!r}", problem.answer, problem.choices),),
                position=len(samples),
            )
        )
    if not samples:
        raise UserError(f"{path}: none of the {len(ids)} test problems has an image")
    return samples


def asked(question: str, choices: Sequence[str], hint: str) -> str:
    """Context (where there is one), question and lettered options, a line each: lmms-eval's form."""
    options = [f"{letter}. {choice}" for letter, choice in zip(_LETTERS, choices, strict=False)]
    return "\n".join([*([f"Context: {hint}"] if hint else []), question, *options])


def right_letter(where: str, answer: int, choices: Sequence[str]) -> str:
    """The letter of option number `answer` (from 0); UserError when there is no such option."""
    if not 0 <= answer < min(len(choices), len(_LETTERS)):
        raise UserError(f"{where}: answer {answer} is none of its {len(choices)} choices")
    return _LETTERS[answer]
