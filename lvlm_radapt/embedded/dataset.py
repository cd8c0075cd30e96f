"""Scenes on disk in the layouts of COCO captions, VQAv2, TextVQA and ImageFolder, for any tool that reads those."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from itertools import product
from typing import Any, get_args

from lvlm_radapt.embedded import scenes
from lvlm_radapt.utils.atomic_folder import new_folder
from lvlm_radapt.utils.errors import UserError

IMAGES = "val2014"
CAPTIONS = "annotations/captions_val2014.json"
QUESTIONS = "v2_OpenEnded_mscoco_val2014_questions.json"
ANNOTATIONS = "v2_mscoco_val2014_annotations.json"
TEXTVQA = "TextVQA_0.5.1_val.json"
SCENES = "scenes.json"
CLASSES = "classes"

_ANSWER_TYPES = {"yesno": "yes/no", "count": "number"}  # every other kind is VQAv2's "other"
_QUESTION_TYPES = {
    "shape": "what", "colour": "what color is the", "count": "how many", "size": "what",
    "background": "what color is the", "word": "what",
}  # fmt: skip
_README = """\
Procedural scenes, drawn by lvlm-radapt: no photographs, no people, nothing downloaded.

{count} scenes of the split "{split}", seed {seed}, {sizes} px (height x width); the same numbers give the
same files.

{images}/                                        the images, PNG
{captions}           5 captions an image, laid out as COCO's
{questions}      questions of seven kinds, laid out as VQAv2's
{annotations}             their 10 answers each
{textvqa}                           the questions about the word on the sign, laid out as TextVQA's
{scenes}                                      by image: the caption the embedded models learn to write,
                                                 whether it shows a pair of colour and shape that no training
                                                 scene has (held_out), and the kind of every question
"""
_CLASSES_README = """\
{classes}/COLOUR_SHAPE/                           other scenes of the split, of one large thing each: {per_class} images
                                                 for each pair of colour and shape
"""
_SHIFTED_README = """\
Shifted: textures that no training scene has, and in each image above a pair of colour and shape that none has.
"""


def image_stem(image_id: int) -> str:
    """File name of an image without its suffix, as COCO's 2014 validation images are called."""
    return f"COCO_val2014_{image_id:012d}"


def write_scenes(
    out: str | os.PathLike[str],
    *,
    count: int = 500,
    seed: int = 0,
    mixed: bool = False,
    split: scenes.Split = "test",
    per_class: int = 0,
    shifted: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write `count` scenes to the new folder `out`, and say what was written.

    Image ids are 1 to `count`, question ids image id * 10 + the kind's place in `QUESTION_TYPES`. The VQAv2
    file holds every kind of question that a scene can answer, the TextVQA file those about the sign's word.

    mixed: canvases of `scenes.MIXED` in turn, else all of `scenes.SQUARE`.
    per_class: further scenes of one large thing for each pair of colour and shape, in folders of their own; the pairs
        of `scenes.HELD_OUT` are left out of the training split.
    shifted: scenes unlike the training ones: new textures, and in each of the `count` a pair that no training scene
        has. The class folders keep all pairs, so that the choices stay the same.
    progress: called as progress(done, all) after every image.

    Returns {"folder", "images", "questions", "word_questions", "held_out", "classified"}: the folder and five counts.
    UserError for a folder that is not empty or cannot be written, a count below 1, an unknown split, and
    shifted training scenes.
    """
    if count < 1:
        raise UserError(f"the number of scenes must be at least 1, got {count}")
    if split not in get_args(scenes.Split):
        raise UserError(f"split {split!r} is unknown, choose one of {', '.join(get_args(scenes.Split))}")
    if shifted and split == "train":
        raise UserError("shifted scenes are unlike the training split: choose test or validation")
    if per_class < 0:
        raise UserError(f"the number of images a class must be at least 0, got {per_class}")
    sizes = scenes.MIXED if mixed else (scenes.SQUARE,)
    files = _Files()
    pairs = [(c, s) for c in scenes.COLOURS for s in scenes.SHAPES if split != "train" or (c, s) not in scenes.HELD_OUT]
    total = count + per_class * len(pairs)
    with new_folder(out) as folder:
        (folder / IMAGES).mkdir()
        (folder / "annotations").mkdir()
        for index in range(count):
            scene = scenes.sample_scene(split, seed, index, sizes[index % len(sizes)], shifted=shifted)
            image_id = index + 1
            scenes.render(scene).save(folder / IMAGES / f"{image_stem(image_id)}.png")
            files.add(scene, image_id)
            if progress is not None:
                progress(image_id, total)
        for done, ((colour, shape), index) in enumerate(product(pairs, range(per_class)), start=count + 1):
            path = folder / CLASSES / f"{colour}_{shape}" / f"{index + 1:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            scenes.render(scenes.sample_single(split, seed, index, colour, shape, shifted=shifted)).save(path)
            if progress is not None:
                progress(done, total)
        origin = {"split": split, "seed": seed, "mixed": mixed} | ({"shifted": True} if shifted else {})
        for name, content in files.contents(**origin).items():
            (folder / name).write_text(json.dumps(content) + "\n", encoding="utf-8")
        text = _README.format(
            count=count, split=split, seed=seed, sizes=", ".join(f"{h}x{w}" for h, w in sizes), images=IMAGES,
            captions=CAPTIONS, questions=QUESTIONS, annotations=ANNOTATIONS, textvqa=TEXTVQA, scenes=SCENES,
        )  # fmt: skip
        if shifted:
            text += _SHIFTED_README
        if per_class:
            text += _CLASSES_README.format(classes=CLASSES, per_class=per_class)
        (folder / "README.txt").write_text(text, encoding="utf-8")
    return {
        "images": count,
        "questions": len(files.questions),
        "word_questions": len(files.textvqa),
        "held_out": sum(entry["held_out"] for entry in files.scenes.values()),
        "classified": per_class * len(pairs),
    }


class _Files:
    """The rows of every JSON file."""

    def __init__(self) -> None:
        self.images: list[dict[str, Any]] = []
        self.captions: list[dict[str, Any]] = []
        self.questions: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.textvqa: list[dict[str, Any]] = []
        self.scenes: dict[str, dict[str, Any]] = {}

    def add(self, scene: scenes.Scene, image_id: int) -> None:
        name = f"{image_stem(image_id)}.png"
        self.images.append(
            {"id": image_id, "file_name": name, "height": scene.height, "width": scene.width, "license": 1}
        )
        self.captions += [
            {"id": len(self.captions) + i, "image_id": image_id, "caption": text}
            for i, text in enumerate(scenes.paraphrases(scene), start=1)
        ]
        kinds = {}
        for question in scenes.questions(scene):
            question_id = image_id * 10 + scenes.QUESTION_TYPES.index(question.kind)
            kinds[str(question_id)] = question.kind
            self._ask(scene, image_id, question_id, question)
        self.scenes[str(image_id)] = {
            "caption": scenes.caption(scene),
            "held_out": scene.held_out,
            "height": scene.height,
            "width": scene.width,
            "questions": kinds,
        }

    def _ask(self, scene: scenes.Scene, image_id: int, question_id: int, question: scenes.Question) -> None:
        answers = scenes.human_answers(question, question_id)
        shared = {"image_id": image_id, "question_id": question_id}
        self.questions.append(shared | {"question": question.text})
        self.annotations.append(
            shared
            | {
                "question_type": _QUESTION_TYPES.get(question.kind, " ".join(question.text.split()[:3])),
                "answer_type": _ANSWER_TYPES.get(question.kind, "other"),
                "multiple_choice_answer": question.answer,
                "answers": [
                    {"answer": a, "answer_confidence": "yes", "answer_id": i} for i, a in enumerate(answers, start=1)
                ],
            }
        )
        if question.is_word:
            self.textvqa.append(
                {
                    "question": question.text,
                    "image_id": image_stem(image_id),
                    "image_classes": [thing.shape for thing in scene.things],
                    "image_width": scene.width,
                    "image_height": scene.height,
                    "answers": answers,
                    "question_tokens": question.text.rstrip("?").split(),
                    "question_id": question_id,
                    "set_name": "val",
                }
            )

    def contents(self, **origin: Any) -> dict[str, dict[str, Any]]:
        """File name -> what goes into it."""
        info = {"description": "procedural scenes of lvlm-radapt", "version": "1", **origin}
        common = {"info": info, "data_type": "mscoco", "data_subtype": "val2014"}
        return {
            CAPTIONS: {"info": info, "images": self.images, "annotations": self.captions, "licenses": []},
            QUESTIONS: common | {"task_type": "Open-Ended", "questions": self.questions},
            ANNOTATIONS: common | {"annotations": self.annotations},
            TEXTVQA: {
                "dataset_type": "val",
                "dataset_name": "textvqa",
                "dataset_version": "0.5.1",
                "data": self.textvqa,
            },
            SCENES: {**origin, "images": self.scenes},
        }
