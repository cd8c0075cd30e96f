"""Parquet files with the columns of lmms-eval's data sets: the same samples as from the original files."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from eval_tasks.data import check_images, load_task, open_image, skip_missing
from eval_tasks.data.checking import check_data
from eval_tasks.data.rows import open_rows
from lvlm_radapt.cli import app
from lvlm_radapt.errors import UserError

datasets = pytest.importorskip("datasets", reason="the extra hf is not installed")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    open_rows.cache_clear()


def stored(level: int) -> dict[str, Any]:
    encoded = io.BytesIO()
    Image.new("RGB", (4, 3), (level, 0, 9)).save(encoded, format="PNG")
    return {"bytes": encoded.getvalue(), "path": None}


TEN = ["red"] * 9 + ["maroon"]
ROWS: dict[str, list[dict[str, Any]]] = {
    "coco": [
        {"question_id": "COCO_val2014_000000000100.jpg", "answer": ["A cat. ", "Cat"], "id": 5, "license": 1},
        {"question_id": "COCO_val2014_000000000009.jpg", "answer": ["A dog"], "id": 6, "license": 1},
    ],
    "flickr30k": [
        {"filename": "36979.jpg", "caption": ["Two men.", "Men"], "split": "test", "img_id": "0"},
        {"filename": "7.jpg", "caption": ["x"], "split": "train", "img_id": "1"},
        {"filename": "99.jpg", "caption": ["y"], "split": "test", "img_id": "2"},
    ],
    "vqav2": [
        {"question_id": 42, "question": "Why?", "image_id": 3, "multiple_choice_answer": "red"}
        | {"answers": [{"answer": a, "answer_confidence": "yes", "answer_id": k} for k, a in enumerate(TEN)]},
    ],
    "textvqa": [{"question_id": 34602, "question": "what brand?", "answers": TEN, "image_id": "003a"}],
    "okvqa": [{"question_id": "2971475", "question": "What sport?", "answers": TEN}],
    "vizwiz": [{"question_id": "VizWiz_val_00000000.jpg", "question": "What?", "answers": TEN, "category": "other"}],
    "pope": [
        {"question_id": "1", "question": "A dog?", "answer": "yes", "category": "popular", "image_source": "COCO_1"},
        {"question_id": "1", "question": "A cat?", "answer": "no", "category": "random", "image_source": "COCO_1"},
    ],
    "scienceqa": [{"question": "Which?", "choices": ["a", "b"], "answer": 1, "hint": "Look.", "grade": "grade2"}],
}


def write(path: Path, rows: list[dict[str, Any]], images: list[dict[str, Any] | None] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    held = images or [stored(10 * k) for k in range(len(rows))]
    columns = {name: [row[name] for row in rows] for name in rows[0]} | {"image": held}
    datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image(decode=False)).to_parquet(path)


EXPECTED = {
    "coco": [("9", None, ("A dog",), 1), ("100", None, ("A cat.", "Cat"), 0)],
    "flickr30k": [("99", None, ("y",), 1), ("36979", None, ("Two men.", "Men"), 0)],
    "vqav2": [("42", "Why?", tuple(TEN), 0)],
    "textvqa": [("34602", "what brand?", tuple(TEN), 0)],
    "okvqa": [("2971475", "What sport?", tuple(TEN), 0)],
    "vizwiz": [("VizWiz_val_00000000", "What?", tuple(TEN), 0)],
    "pope": [("popular/1", "A dog?", ("yes",), 0), ("random/1", "A cat?", ("no",), 1)],
    "scienceqa": [("0", "Context: Look.\nWhich?\nA. a\nB. b", ("B",), 0)],
}


@pytest.mark.parametrize("task", ROWS)
def test_every_task_is_read_from_its_columns(tmp_path: Path, task: str) -> None:
    write(tmp_path / "set" / "data" / "val-00000-of-00001.parquet", ROWS[task])
    samples = load_task(task, tmp_path / "set")
    assert [(s.id, s.question, s.references, s.position) for s in samples] == EXPECTED[task]
    check_images(samples)
    for sample in samples:  # the image of the sample's own row, whatever the order
        row = next(k for k, row in enumerate(ROWS[task]) if sample.id in _ids(task, row, k))
        np.testing.assert_array_equal(np.asarray(open_image(sample.image))[0, 0], [10 * row, 0, 9])


def _ids(task: str, row: dict[str, Any], number: int) -> list[str]:
    own = str(row.get("question_id", row.get("filename", number))).removesuffix(".jpg")
    return [own, own[-12:].lstrip("0"), f"{row.get('category')}/{own}"]


def test_the_split_of_the_task_is_taken(tmp_path: Path) -> None:
    for split, question in (("train", 1), ("validation", 2), ("test", 3)):
        write(tmp_path / f"{split}-00000-of-00001.parquet", [ROWS["textvqa"][0] | {"question_id": question}])
    assert [sample.id for sample in load_task("textvqa", tmp_path)] == ["2"]
    with pytest.raises(UserError, match="of test, train, validation, not of the split val2014"):
        load_task("okvqa", tmp_path)


def test_several_files_are_one_set(tmp_path: Path) -> None:
    for part in range(2):
        write(tmp_path / f"val-0000{part}-of-00002.parquet", [ROWS["textvqa"][0] | {"question_id": 7 - part}])
    first, second = load_task("textvqa", tmp_path)
    assert [(s.id, s.position) for s in (first, second)] == [("6", 1), ("7", 0)]


@pytest.mark.parametrize(
    ("task", "changed", "words"),
    [
        ("vqav2", {"answers": None}, "row 0: field answers"),
        ("textvqa", {"answers": TEN[:9]}, "row 0: field answers"),
        ("textvqa", {"question": ""}, "row 0: field question"),
        ("coco", {"answer": [" "]}, "row 0 has no caption"),
        ("pope", {"answer": "maybe"}, "row 0: field answer"),
        ("pope", {"category": "other"}, "row 0: field category"),
        ("scienceqa", {"answer": 2}, "answer 2 is none of its 2 choices"),
    ],
)
def test_wrong_values_name_the_row(tmp_path: Path, task: str, changed: dict[str, Any], words: str) -> None:
    write(tmp_path / "val-00000-of-00001.parquet", [ROWS[task][0] | changed])
    with pytest.raises(UserError, match=words) as caught:
        load_task(task, tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_columns_duplicates_and_damage_are_told(tmp_path: Path) -> None:
    path = tmp_path / "val-00000-of-00001.parquet"
    write(path, [{"question_id": 1, "answers": TEN}])
    with pytest.raises(UserError, match=r"have no column question; task okvqa wants .* columns image, question_id"):
        load_task("okvqa", tmp_path)
    write(path, ROWS["textvqa"] * 2)
    open_rows.cache_clear()
    with pytest.raises(UserError, match="id '34602' occurs more than once"):
        load_task("textvqa", tmp_path)
    path.write_bytes(path.read_bytes()[:-9])
    open_rows.cache_clear()
    with pytest.raises(UserError, match="cannot read the parquet files") as caught:
        load_task("textvqa", tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="which task imagefolder does not read"):
        load_task("imagefolder", tmp_path)


def test_rows_without_an_image_are_missing_and_paths_are_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "secret.png"
    Image.new("RGB", (4, 3)).save(elsewhere)
    images = [stored(1), None, {"bytes": None, "path": str(elsewhere)}, {"bytes": b"no image", "path": None}]
    write(tmp_path / "set" / "x.parquet", [ROWS["okvqa"][0] | {"question_id": k} for k in range(4)], images)
    samples = load_task("okvqa", tmp_path / "set")
    with pytest.raises(UserError, match=r"2 of 4 images are missing: .*row 1 \(1\), .*row 2 \(2\)"):
        check_images(samples)
    kept, note = skip_missing(samples)
    assert [sample.id for sample in kept] == ["0", "3"]
    assert note is not None
    assert "2 samples were left out" in note
    with pytest.raises(UserError, match="holds no image bytes"):
        open_image(samples[1].image)
    with pytest.raises(UserError, match=r"row 3 \(3\) is not an image"):
        open_image(samples[3].image)
    found = check_data("okvqa", tmp_path / "set")
    assert (found.ok, len(found.missing), len(found.damaged)) == (False, 2, 1)


def test_data_check_on_parquet_files(tmp_path: Path) -> None:
    write(tmp_path / "set" / "val-00000-of-00001.parquet", ROWS["vqav2"])
    result = CliRunner().invoke(app, ["data", "check", "vqav2", "--data", str(tmp_path / "set")])
    assert result.exit_code == 0, result.output
    assert "1 samples on 1 images" in result.output
