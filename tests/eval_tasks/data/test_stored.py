"""Data sets in rows with the columns of lmms-eval's: the same samples as from the original files."""

import io
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from eval_tasks.data import check_images, image_key, load_task, open_image, skip_missing
from eval_tasks.data.checking import check_data
from eval_tasks.data.rows import open_rows
from lvlm_radapt.cli import app
from lvlm_radapt.utils.errors import UserError

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
        | {"answers": [{"answer": a, "answer_confidence": "yes", "answer_id": k} for k, a in enumerate(TEN)]}
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
    made(rows, images).to_parquet(path)


def made(rows: list[dict[str, Any]], images: list[dict[str, Any] | None] | None = None) -> Any:
    held = images or [stored(10 * k) for k in range(len(rows))]
    columns = {name: [row[name] for row in rows] for name in rows[0]} | {"image": held}
    return datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image(decode=False))


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


def _store(kind: str, folder: Path, rows: list[dict[str, Any]]) -> None:
    if kind == "parquet":
        return write(folder / "data" / "val-00000-of-00001.parquet", rows)
    whole = made(rows)
    if kind == "saved, of images":
        whole = whole.cast_column("image", datasets.Image())
    if kind == "saved as tensors":
        whole = whole.with_format("numpy")
    if kind == "saved in splits":
        split = {"coco": "val", "okvqa": "val2014", "vizwiz": "val", "vqav2": "validation", "textvqa": "validation"}
        whole = datasets.DatasetDict({"train": made(rows[:1]), split.get(folder.name, "test"): whole})
    whole.save_to_disk(folder)
    return None


@pytest.mark.parametrize(
    "kind", ["parquet", "saved", "saved, of images", "saved as tensors", "saved in splits", "saved in shards"]
)
@pytest.mark.parametrize("task", ROWS)
def test_every_task_is_read_from_its_columns(tmp_path: Path, task: str, kind: str) -> None:
    if kind == "saved in shards":
        made(ROWS[task]).save_to_disk(tmp_path / task, num_shards=len(ROWS[task]))
    else:
        _store(kind, tmp_path / task, ROWS[task])
    samples = load_task(task, tmp_path / task)
    assert [(s.id, s.question, s.references, s.position) for s in samples] == EXPECTED[task]
    check_images(samples)
    for sample in samples:  # the image of the sample's own row, whatever the order
        row = next(k for k, row in enumerate(ROWS[task]) if sample.id in _ids(task, row, k))
        np.testing.assert_array_equal(np.asarray(open_image(sample.image))[0, 0], [10 * row, 0, 9])


def _ids(task: str, row: dict[str, Any], number: int) -> list[str]:
    own = str(row.get("question_id", row.get("filename", number))).removesuffix(".jpg")
    return [own, own[-12:].lstrip("0"), f"{row.get('category')}/{own}"]


def test_rows_with_a_copy_of_one_image_each_are_about_one_image(tmp_path: Path) -> None:
    rows = [ROWS["okvqa"][0] | {"question_id": k} for k in range(3)]
    write(tmp_path / "set" / "x.parquet", rows, [stored(1), stored(2), stored(1)])
    samples = load_task("okvqa", tmp_path / "set")
    first, second, third = (image_key(sample.image) for sample in samples)
    assert first == third != second
    assert len({sample.image for sample in samples}) == 3
    (tmp_path / "file.png").write_bytes(stored(1)["bytes"])
    assert image_key(tmp_path / "file.png") == first
    with pytest.raises(UserError, match="cannot read image"):
        image_key(tmp_path / "absent.png")


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
    with pytest.raises(UserError, match=r"no column question; task okvqa wants .* columns image, question_id"):
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


def _saved(folder: Path) -> Path:
    datasets.DatasetDict({"validation": made(ROWS["vqav2"]), "test": made(ROWS["vqav2"])}).save_to_disk(folder)
    return folder


def _rewrite(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


_ARROW = "data-00000-of-00001.arrow"
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no list of splits": (lambda f: (f / "dataset_dict.json").write_text("[]"), r"dataset_dict\.json: "),
    "no split": (lambda f: (f / "dataset_dict.json").write_text('{"splits": []}'), "field splits"),
    "a split elsewhere": (
        lambda f: _rewrite(f / "dataset_dict.json", '"test"', '"../x"'),
        "stay inside the data folder",
    ),
    "no split of the task": (
        lambda f: _rewrite(f / "dataset_dict.json", '"validation"', '"train"'),
        "holds a saved data set of test, train, not of the split validation",
    ),
    "a split missing": (lambda f: shutil.rmtree(f / "validation"), r"cannot read .*state\.json: No such file"),
    "rows elsewhere": (
        lambda f: _rewrite(f / "validation" / "state.json", _ARROW, "../../secret.arrow"),
        r"state\.json: image name '\.\./\.\./secret\.arrow' does not stay inside the data folder",
    ),
    "rows missing": (lambda f: (f / "validation" / _ARROW).unlink(), f"cannot read the data set .*{_ARROW}"),
    "rows cut off": (
        lambda f: (f / "validation" / _ARROW).write_bytes((f / "validation" / _ARROW).read_bytes()[:-200]),
        "cannot read the data set",
    ),
    "no rows at all": (lambda f: (f / "validation" / _ARROW).write_bytes(b""), "cannot read the data set"),
    "no description": (lambda f: (f / "validation" / "dataset_info.json").write_text("{"), "cannot read the data set"),
    "other columns": (
        lambda f: made(ROWS["coco"]).save_to_disk(f / "validation"),
        "a saved data set in .*: no column question, answers; task vqav2 wants ",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_saved_data_set_is_one_line(tmp_path: Path, name: str) -> None:
    change, words = DAMAGE[name]
    change(_saved(tmp_path / "set"))
    with pytest.raises(UserError, match=words) as caught:
        load_task("vqav2", tmp_path / "set")
    assert "\n" not in str(caught.value)
    assert check_data("vqav2", tmp_path / "set").problem == str(caught.value)


def test_without_the_library_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _saved(tmp_path / "set")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'lvlm-radapt\[hf\]'"):
        load_task("vqav2", folder)


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_data_check_on_rows(tmp_path: Path, kind: str) -> None:
    _store(kind, tmp_path / "set", ROWS["vqav2"])
    result = CliRunner().invoke(app, ["data", "check", "vqav2", "--data", str(tmp_path / "set")])
    assert result.exit_code == 0, result.output
    assert "1 samples on 1 images" in result.output
