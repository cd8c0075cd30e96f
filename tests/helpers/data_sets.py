"""Small data folders in the layout of every text task."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lvlm_radapt.embedded.dataset import write_scenes
from tests.helpers.cli import exit_code
from tests.helpers.tiny_checkpoints import save_llava

ANSWERS = ["red"] * 7 + ["dark red", "Red", "maroon"]

QUESTIONS = "v2_OpenEnded_mscoco_val2014_questions.json"

ANNOTATIONS = "v2_mscoco_val2014_annotations.json"

TEXTVQA = "TextVQA_0.5.1_val.json"

OKVQA_QUESTIONS = "OpenEnded_mscoco_val2014_questions.json"

OKVQA_ANNOTATIONS = "mscoco_val2014_annotations.json"


def scenes_folder(**how: Any) -> Any:
    """A module's fixture: a folder of scenes, drawn once. how: keywords of `write_scenes`."""

    @pytest.fixture(scope="module")
    def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
        out = tmp_path_factory.mktemp("data") / "scenes"
        write_scenes(out, **how)
        return out

    return folder


def attacked_place(root: Path, task: str, count: int) -> Path:
    """`root` with that many scenes in `data`, a tiny random LLaVA in `llava`, and in `made` attacked images of it."""
    write_scenes(root / "data", count=count)
    save_llava(root / "llava")
    words = ["eval", root / "llava", "--task", task, "--data", root / "data", "--attack", "embedding", "--eps", "8/255"]
    words += ["--steps", 2, "--samples", count, "--preset", "scenes", "--out", root / "made"]
    assert exit_code(*words) == 0
    return root


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (3, 2), (10, 20, 30)).save(path)


def coco_file() -> dict[str, Any]:
    return {
        "info": {"year": 2014},
        "images": [
            {"id": 100, "file_name": "COCO_val2014_000000000100.jpg", "height": 2, "width": 3},
            {"id": 9, "file_name": "COCO_val2014_000000000009.jpg", "height": 2, "width": 3},
        ],
        "annotations": [
            {"id": 1, "image_id": 9, "caption": "A dog. "},
            {"id": 2, "image_id": 100, "caption": "A cat.\n"},
            {"id": 3, "image_id": 9, "caption": "The {dog}"},
        ],
    }


def karpathy_flickr() -> dict[str, Any]:
    def row(name: str, split: str) -> dict[str, Any]:
        return {"sentids": [0], "imgid": 0, "split": split, "filename": name} | {
            "sentences": [{"tokens": ["two", "men"], "raw": f"Two men {k}.", "sentid": k} for k in range(5)]
        }

    rows = [row("1007129816.jpg", "test"), row("99.jpg", "train"), row("36979.jpg", "test")]
    return {"images": rows, "dataset": "flickr30k"}


def vqa_files() -> tuple[dict[str, Any], dict[str, Any]]:
    questions = [
        {"image_id": 42, "question": "What colour is {it}?", "question_id": 42000},
        {"image_id": 42, "question": "Is it raining?", "question_id": 4201},
    ]
    answers = [{"answer": text, "answer_confidence": "yes", "answer_id": k + 1} for k, text in enumerate(ANSWERS)]
    yes = [{"answer": "yes", "answer_confidence": "maybe", "answer_id": k + 1} for k in range(10)]
    common = {"question_type": "what", "multiple_choice_answer": "red", "image_id": 42, "answer_type": "other"}
    annotations = [common | {"question_id": 4201, "answers": yes}, common | {"question_id": 42000, "answers": answers}]
    return {"questions": questions, "data_type": "mscoco"}, {"annotations": annotations, "license": {}}


def textvqa_file() -> dict[str, Any]:
    row = {"image_id": "003a8ae2ef43b901", "question": "what is the brand?", "question_id": 34602}
    return {"dataset_type": "val", "data": [row | {"answers": ["nokia"] * 10, "image_classes": ["Phone"]}]}


def make_coco(root: Path) -> None:
    write(root / "annotations" / "captions_val2014.json", coco_file())
    picture(root / "val2014" / "COCO_val2014_000000000100.jpg")
    picture(root / "val2014" / "COCO_val2014_000000000009.jpg")


def make_vqav2(root: Path) -> None:
    questions, annotations = vqa_files()
    write(root / QUESTIONS, questions)
    write(root / ANNOTATIONS, annotations)
    picture(root / "val2014" / "COCO_val2014_000000000042.jpg")


def make_flickr(root: Path) -> None:
    write(root / "dataset_flickr30k.json", karpathy_flickr())
    for name in ("1007129816.jpg", "36979.jpg"):
        picture(root / "flickr30k-images" / name)


def make_textvqa(root: Path) -> None:
    write(root / TEXTVQA, textvqa_file())
    picture(root / "train_images" / "003a8ae2ef43b901.jpg")


def make_okvqa(root: Path) -> None:
    questions, annotations = vqa_files()
    write(root / OKVQA_QUESTIONS, questions)
    write(root / OKVQA_ANNOTATIONS, annotations)
    picture(root / "val2014" / "COCO_val2014_000000000042.jpg")


def vizwiz_file() -> list[dict[str, Any]]:
    answers = [{"answer": text, "answer_confidence": "yes"} for text in ["unanswerable"] * 8 + ["soup", "can"]]
    common = {"answers": answers, "answer_type": "unanswerable", "answerable": 0}
    return [
        common | {"image": "VizWiz_val_00000007.jpg", "question": "What is this?"},
        common | {"image": "VizWiz_val_00000002.jpg", "question": "Is it {red}?"},
    ]


def make_vizwiz(root: Path) -> None:
    write(root / "val.json", vizwiz_file())
    for row in vizwiz_file():
        picture(root / "val" / row["image"])


def pope_rows(part: str) -> list[dict[str, Any]]:
    image = "COCO_val2014_000000000042.jpg"
    return [
        {"question_id": 1, "image": image, "text": f"Is there a {part} dog in the image?", "label": "yes"},
        {"question_id": 2, "image": image, "text": f"Is there a {part} cat in the image?", "label": "no"},
    ]


def json_lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def make_pope(root: Path) -> None:
    for part, suffix in (("random", "json"), ("popular", "jsonl"), ("adversarial", "json")):
        write(root / f"coco_pope_{part}.{suffix}", json_lines(pope_rows(part)))
    picture(root / "val2014" / "COCO_val2014_000000000042.jpg")


def scienceqa_files() -> tuple[dict[str, Any], dict[str, Any]]:
    problem = {"question": "Which is it?", "choices": ["a", "b", "c"], "answer": 1, "hint": "", "image": "image.png"}
    problems = {
        "12": problem,
        "4": problem | {"hint": "Look at {it}.", "answer": 2},
        "5": problem | {"image": None},
        "6": problem,
    }
    return problems, {"train": ["6"], "test": ["12", "4", "5"]}


def make_scienceqa(root: Path) -> None:
    problems, splits = scienceqa_files()
    write(root / "problems.json", problems)
    write(root / "pid_splits.json", splits)
    for own in ("12", "4"):
        picture(root / "images" / "test" / own / "image.png")


MAKERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "coco": (make_coco, "annotations/captions_val2014.json"),
    "flickr30k": (make_flickr, "dataset_flickr30k.json"),
    "vqav2": (make_vqav2, ANNOTATIONS),
    "textvqa": (make_textvqa, TEXTVQA),
    "okvqa": (make_okvqa, OKVQA_ANNOTATIONS),
    "vizwiz": (make_vizwiz, "val.json"),
    "pope": (make_pope, "coco_pope_random.json"),
    "scienceqa": (make_scienceqa, "problems.json"),
}


def change(content: Any, where: list[Any], value: Any) -> Any:
    inner = content
    for key in where[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[where[-1]]
    else:
        inner[where[-1]] = value
    return content
