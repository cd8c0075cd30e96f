"""Loaders on small folders laid out as the originals are, and on everything that can be wrong with them."""

import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from eval_tasks import data
from eval_tasks.data import check_images, chunks, layout, load_task, open_image, select, skip_missing, tasks
from eval_tasks.data.sample import Sample, natural_key
from eval_tasks.data.set_config import zero_shot_sets
from eval_tasks.tasks.make_task import TYPES
from lvlm_radapt.utils import images
from lvlm_radapt.utils.errors import UserError
from tests.helpers.data_sets import (
    ANNOTATIONS,
    ANSWERS,
    MAKERS,
    QUESTIONS,
    TEXTVQA,
    change,
    coco_file,
    json_lines,
    karpathy_flickr,
    make_coco,
    make_okvqa,
    make_pope,
    make_scienceqa,
    make_vqav2,
    picture,
    pope_rows,
    textvqa_file,
    vizwiz_file,
    vqa_files,
    write,
)


def karpathy_coco() -> dict[str, Any]:
    def row(cocoid: int, folder: str, split: str) -> dict[str, Any]:
        sentence = {"tokens": ["a", "dog"], "raw": f"A dog {cocoid}.", "imgid": 0, "sentid": 1}
        name = f"COCO_{folder}_{cocoid:012d}.jpg"
        return {"filepath": folder, "sentids": [1], "filename": name, "imgid": 0, "split": split} | {
            "sentences": [sentence, sentence | {"raw": "Two dogs"}],
            "cocoid": cocoid,
        }

    rows = [row(30, "val2014", "test"), row(4, "val2014", "val"), row(7, "train2014", "test")]
    return {"images": rows, "dataset": "coco"}


def complaint(task: str, root: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_task(task, root)
    text = str(caught.value)
    assert "\n" not in text
    return text


# --- what is read


def test_coco_layout(tmp_path: Path) -> None:
    make_coco(tmp_path)
    first, second = load_task("coco", tmp_path)
    assert first == Sample(
        id="9",
        image=tmp_path / "val2014" / "COCO_val2014_000000000009.jpg",
        question=None,
        references=("A dog.", "The {dog}"),
        position=1,
    )
    assert (second.id, second.references, second.position) == ("100", ("A cat.",), 0)
    check_images([first, second])


@pytest.mark.parametrize("folder", ["val2014", "train2014", "images", "."])
def test_coco_images_in_any_of_the_folders(tmp_path: Path, folder: str) -> None:
    write(tmp_path / "captions.json", coco_file())
    for row in coco_file()["images"]:
        picture(tmp_path / folder / row["file_name"])
    check_images(load_task("coco", str(tmp_path)))


def test_a_file_of_another_year_brings_its_folder(tmp_path: Path) -> None:
    write(tmp_path / "annotations" / "captions_val2017.json", coco_file())
    for row in coco_file()["images"]:
        picture(tmp_path / "val2017" / row["file_name"])
    check_images(load_task("coco", tmp_path))


def test_caption_files_in_doubt(tmp_path: Path) -> None:
    for name in ("captions_train2017.json", "captions_val2017.json"):
        write(tmp_path / "annotations" / name, coco_file())
    assert "captions_train2017.json, captions_val2017.json" in complaint("coco", tmp_path)
    write(tmp_path / "annotations" / "captions_val2014.json", coco_file())
    assert len(load_task("coco", tmp_path)) == 2


def test_karpathy_coco_uses_the_test_part_and_wins(tmp_path: Path) -> None:
    make_coco(tmp_path)
    write(tmp_path / "dataset_coco.json", karpathy_coco())
    picture(tmp_path / "val2014" / "COCO_val2014_000000000030.jpg")
    picture(tmp_path / "images" / "COCO_train2014_000000000007.jpg")
    samples = load_task("coco", tmp_path)
    assert [sample.id for sample in samples] == ["7", "30"]
    assert samples[0].references == ("A dog 7.", "Two dogs")
    assert [sample.position for sample in samples] == [1, 0]
    check_images(samples)


@pytest.mark.parametrize("folder", ["flickr30k-images", "images", "."])
def test_flickr30k(tmp_path: Path, folder: str) -> None:
    write(tmp_path / "dataset_flickr30k.json", karpathy_flickr())
    for name in ("1007129816.jpg", "36979.jpg"):
        picture(tmp_path / folder / name)
    samples = load_task("flickr30k", tmp_path)
    assert [sample.id for sample in samples] == ["36979", "1007129816"]
    assert samples[0].references == tuple(f"Two men {k}." for k in range(5))
    check_images(samples)


@pytest.mark.parametrize(
    "name",
    [
        "val2014/COCO_val2014_000000000042.jpg",
        "val2014/COCO_val2014_000000000042.png",
        "images/000000000042.jpg",
        "42.png",
    ],
)
def test_vqav2(tmp_path: Path, name: str) -> None:
    questions, annotations = vqa_files()
    write(tmp_path / QUESTIONS, questions)
    write(tmp_path / ANNOTATIONS, annotations)
    picture(tmp_path / name)
    first, second = load_task("vqav2", tmp_path)
    assert (first.id, first.question, first.references) == ("4201", "Is it raining?", ("yes",) * 10)
    assert (second.id, second.question, second.references) == ("42000", "What colour is {it}?", tuple(ANSWERS))
    assert first.image == second.image == tmp_path / name


@pytest.mark.parametrize(
    ("image_id", "name"),
    [
        ("003a8ae2ef43b901", "train_images/003a8ae2ef43b901.jpg"),
        ("003a8ae2ef43b901", "val2014/003a8ae2ef43b901.png"),
        (12, "images/12.png"),
        (12, "val2014/COCO_val2014_000000000012.png"),
    ],
)
def test_textvqa(tmp_path: Path, image_id: str | int, name: str) -> None:
    content = textvqa_file()
    content["data"][0]["image_id"] = image_id
    write(tmp_path / TEXTVQA, content)
    picture(tmp_path / name)
    (sample,) = load_task("textvqa", tmp_path)
    assert (sample.id, sample.question) == ("34602", "what is the brand?")
    assert sample.references == ("nokia",) * 10
    assert sample.image == tmp_path / name


def test_okvqa_is_read_as_vqav2_is(tmp_path: Path) -> None:
    make_okvqa(tmp_path / "okvqa")
    make_vqav2(tmp_path / "vqav2")
    ours, theirs = load_task("okvqa", tmp_path / "okvqa"), load_task("vqav2", tmp_path / "vqav2")
    assert [(s.id, s.question, s.references) for s in ours] == [(s.id, s.question, s.references) for s in theirs]
    check_images(ours)


@pytest.mark.parametrize("folder", ["val", "images", "."])
@pytest.mark.parametrize("place", ["val.json", "Annotations/val.json"])
def test_vizwiz(tmp_path: Path, folder: str, place: str) -> None:
    write(tmp_path / place, vizwiz_file())
    for row in vizwiz_file():
        picture(tmp_path / folder / row["image"])
    first, second = load_task("vizwiz", tmp_path)
    assert (first.id, first.question, first.position) == ("VizWiz_val_00000002", "Is it {red}?", 1)
    assert second.references == ("unanswerable",) * 8 + ("soup", "can")
    check_images([first, second])


def test_pope_joins_its_three_files(tmp_path: Path) -> None:
    make_pope(tmp_path)
    samples = load_task("pope", tmp_path)
    assert {s.id: (s.position, s.references) for s in samples} == {
        "random/1": (0, ("yes",)),
        "random/2": (1, ("no",)),
        "popular/1": (2, ("yes",)),
        "popular/2": (3, ("no",)),
        "adversarial/1": (4, ("yes",)),
        "adversarial/2": (5, ("no",)),
    }
    assert samples[0].question == "Is there a adversarial dog in the image?"
    check_images(samples)
    (tmp_path / "coco_pope_popular.jsonl").unlink()
    assert "coco_pope_popular.json is not in" in complaint("pope", tmp_path)


def test_scienceqa_asks_about_images_and_letters_its_options(tmp_path: Path) -> None:
    make_scienceqa(tmp_path)
    first, second = load_task("scienceqa", tmp_path)
    assert (first.id, first.question, first.references) == (
        "4",
        "Context: Look at {it}.\nWhich is it?\nA. a\nB. b\nC. c",
        ("C",),
    )
    assert (second.id, second.question, second.references) == ("12", "Which is it?\nA. a\nB. b\nC. c", ("B",))
    assert second.image == tmp_path / "images" / "test" / "12" / "image.png"
    check_images([first, second])


def test_a_byte_order_mark_is_no_obstacle(tmp_path: Path) -> None:
    make_coco(tmp_path)
    write(tmp_path / "annotations" / "captions_val2014.json", b"\xef\xbb\xbf" + json.dumps(coco_file()).encode())
    assert len(load_task("coco", tmp_path)) == 2


@pytest.mark.skipif("LVLM_RADAPT_PHOTOS" not in os.environ, reason="needs a folder of photos in COCO's layout")
def test_real_photos() -> None:
    samples = load_task("coco", os.environ["LVLM_RADAPT_PHOTOS"])
    check_images(samples)
    for sample in samples:
        assert len(sample.references) == 5
        assert open_image(sample.image).mode == "RGB"


def test_the_registry() -> None:
    of_encoders = {"imagefolder", "coco-retrieval", "flickr30k-retrieval", *zero_shot_sets()}
    assert set(tasks()) == {*MAKERS, *of_encoders}
    assert len(zero_shot_sets()) == 16
    assert {name: TYPES[task.type].metric for name, task in tasks().items()} == {
        "coco": "cider",
        "flickr30k": "cider",
        "vqav2": "vqa_accuracy",
        "textvqa": "vqa_accuracy",
        "okvqa": "vqa_accuracy",
        "vizwiz": "vqa_accuracy",
        "pope": "accuracy",
        "scienceqa": "accuracy",
        "imagefolder": "accuracy",
        "coco-retrieval": "recall@1",
        "flickr30k-retrieval": "recall@1",
        **dict.fromkeys(zero_shot_sets(), "accuracy"),
    }
    with pytest.raises(UserError, match="did you mean 'flickr30k'"):
        load_task("flickr", ".")
    with pytest.raises(UserError, match="did you mean 'coco'"):
        layout("cocos")


# --- what is wrong with a folder


@pytest.mark.parametrize("task", MAKERS)
def test_missing_and_empty_folders_say_what_is_wanted(tmp_path: Path, task: str) -> None:
    _, name = MAKERS[task]
    file = name.rpartition("/")[2]
    for root in (tmp_path / "absent", tmp_path / "empty", tmp_path / "other", tmp_path / "plain"):
        if root.name == "empty":
            root.mkdir()
        elif root.name == "other":
            write(root / "notes.txt", b"")
        elif root.name == "plain":
            write(root, b"")
        text = complaint(task, root)
        assert file in text
        assert str(root) in text
        assert layout(task) in text


@pytest.mark.parametrize("task", MAKERS)
@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"{}", b"\xff\xfe", b'{"images": 3}', b"[" * 100_000, b'{"images": [{"id": "x"}]}'],
)
def test_malformed_json_names_the_file(tmp_path: Path, task: str, content: bytes) -> None:
    make, name = MAKERS[task]
    make(tmp_path)
    write(tmp_path / name, content)
    text = complaint(task, tmp_path)
    assert str(tmp_path / name) in text
    assert len(text) < 400


@pytest.mark.parametrize(
    ("task", "where", "value", "words"),
    [
        ("coco", ["images", 0, "id"], "100", "field images.0.id"),
        ("coco", ["images", 0, "id"], True, "field images.0.id"),
        ("coco", ["images", 1, "file_name"], ..., "field images.1.file_name"),
        ("coco", ["annotations", 2, "caption"], None, "field annotations.2.caption"),
        ("coco", ["images", 1, "id"], 100, "image id 100 occurs more than once"),
        ("coco", ["annotations", 0, "image_id"], 77, "captions without an entry in images: id 77"),
        ("coco", ["annotations", 1, "caption"], " \n", "'COCO_val2014_000000000100.jpg' has no caption"),
        ("coco", ["images"], [], "images is empty"),
        ("coco", ["images", 0, "file_name"], "../secret.jpg", "stay inside"),
        ("coco", ["images", 0, "file_name"], "/etc/passwd", "stay inside"),
        ("coco", ["images", 0, "file_name"], "a/..\\..\\b.jpg", "stay inside"),
        ("coco", ["images", 0, "file_name"], "C:\\b.jpg", "stay inside"),
        ("coco", ["images", 0, "file_name"], "a\0.jpg", "stay inside"),
        ("coco", ["images", 0, "file_name"], "", "stay inside"),
        ("flickr30k", ["images", 0, "split"], 3, "field images.0.split"),
        ("flickr30k", ["images", 0, "sentences", 4, "raw"], ..., "field images.0.sentences.4.raw"),
        ("flickr30k", ["images", 2, "filename"], "1007129816.png", "'1007129816' occurs more than once"),
        ("flickr30k", ["images", 2, "filename"], "../x.jpg", "stay inside"),
        ("flickr30k", ["images", 2, "sentences"], [], "'36979.jpg' has no caption"),
        ("vqav2", ["annotations", 0, "answers", 3, "answer"], 5, "field annotations.0.answers.3.answer"),
        ("vqav2", ["annotations", 1, "answers", 0], ..., "field annotations.1.answers"),
        ("vqav2", ["annotations", 1], ..., "no answers for the question with question_id 42000"),
        ("vqav2", ["annotations", 1, "question_id"], 4201, "question_id 4201 occurs more than once"),
        ("vqav2", ["annotations", 1, "image_id"], 43, "about image 43 here but about 42"),
        ("textvqa", ["data", 0, "answers"], ..., "field data.0.answers"),
        ("textvqa", ["data", 0, "question"], "", "field data.0.question"),
        ("textvqa", ["data", 0, "image_id"], "../../x", "stay inside"),
        ("textvqa", ["data", 0, "image_id"], -1, "field data.0.image_id"),
        ("textvqa", ["data"], [], "questions is empty"),
        ("textvqa", ["data", 0, "image_id"], 10**18, "field data.0.image_id"),
        ("textvqa", ["data", 0, "image_id"], "x" * 300, "it is too long"),
        ("coco", ["images", 0, "file_name"], "a\nb.jpg", "control characters"),
        ("coco", ["images", 0, "file_name"], "a\x1b[31m.jpg", "control characters"),
        ("okvqa", ["annotations", 0, "answers", 3, "answer"], None, "field annotations.0.answers.3.answer"),
        ("vizwiz", [0, "answers", 2, "answer"], 1, "field 0.answers.2.answer"),
        ("vizwiz", [1, "image"], "VizWiz_val_00000007.png", "'VizWiz_val_00000007' occurs more than once"),
        ("vizwiz", [1, "image"], "../val/x.png", "stay inside"),
        ("scienceqa", ["12", "answer"], 3, "problem '12': answer 3 is none of its 3 choices"),
        ("scienceqa", ["12", "answer"], -1, "field 12.answer"),
        ("scienceqa", ["12", "choices"], ["a"], "field 12.choices"),
        ("scienceqa", ["12", "image"], "../../image.png", "stay inside"),
        ("scienceqa", ["4"], ..., "not there, but in pid_splits.json: problem '4'"),
    ],
)
def test_wrong_values_name_file_and_field(tmp_path: Path, task: str, where: list[Any], value: Any, words: str) -> None:
    make, name = MAKERS[task]
    make(tmp_path)
    write(tmp_path / name, change(json.loads((tmp_path / name).read_bytes()), where, value))
    text = complaint(task, tmp_path)
    assert words in text
    assert str(tmp_path / name) in text


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"label": "maybe"}, "line 2: field label"),
        ({"text": ""}, "line 2: field text"),
        ({"question_id": "2"}, "line 2: field question_id"),
        ({"question_id": 1}, "question_id 1 occurs more than once"),
        ({"image": "/etc/passwd"}, "stay inside"),
    ],
)
def test_a_wrong_line_of_pope_is_named(tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    make_pope(tmp_path)
    first, second = pope_rows("random")
    write(tmp_path / "coco_pope_random.json", json_lines([first, second | changed]))
    assert words in complaint("pope", tmp_path)


def test_scienceqa_without_images(tmp_path: Path) -> None:
    make_scienceqa(tmp_path)
    write(tmp_path / "pid_splits.json", {"test": ["5"]})
    assert "none of the 1 test problems has an image" in complaint("scienceqa", tmp_path)


def test_several_problems_are_counted(tmp_path: Path) -> None:
    make_coco(tmp_path)
    content = coco_file()
    content["annotations"] += [{"image_id": lost, "caption": "x"} for lost in (5, 6, 6)]
    write(tmp_path / "annotations" / "captions_val2014.json", content)
    assert complaint("coco", tmp_path).endswith("id 5 (and 1 more)")


def test_answers_without_a_question(tmp_path: Path) -> None:
    make_vqav2(tmp_path)
    questions, _ = vqa_files()
    del questions["questions"][0]
    write(tmp_path / QUESTIONS, questions)
    assert "no question for the answers with question_id 42000" in complaint("vqav2", tmp_path)
    (tmp_path / QUESTIONS).unlink()
    assert f"{QUESTIONS} is not in" in complaint("vqav2", tmp_path)


def test_karpathy_without_a_test_part(tmp_path: Path) -> None:
    content = karpathy_coco()
    for row in content["images"]:
        row["split"] = "train"
    write(tmp_path / "dataset_coco.json", content)
    assert "no image has split 'test' (of 3)" in complaint("coco", tmp_path)
    content["images"][0] |= {"split": "test", "filepath": "../elsewhere"}
    write(tmp_path / "dataset_coco.json", content)
    assert "stay inside" in complaint("coco", tmp_path)


def test_missing_images_are_named_and_counted_for_the_selected_only(tmp_path: Path) -> None:
    make_coco(tmp_path)
    absent = tmp_path / "val2014" / "COCO_val2014_000000000009.jpg"
    absent.unlink()
    samples = load_task("coco", tmp_path)
    check_images(samples[1:])
    with pytest.raises(UserError, match="1 of 2 images are missing") as caught:
        check_images(samples)
    assert str(absent) in str(caught.value)
    many = [Sample(str(k), tmp_path / f"{k}.jpg", None, ("x",)) for k in range(9)]
    with pytest.raises(UserError, match=r"9 of 9 .*2\.jpg, \.\.\.;"):
        check_images(many)


def test_samples_without_an_image_can_be_left_out(tmp_path: Path) -> None:
    make_coco(tmp_path)
    samples = load_task("coco", tmp_path)
    assert skip_missing(samples) == (samples, None)
    absent = tmp_path / "val2014" / "COCO_val2014_000000000009.jpg"
    absent.unlink()
    kept, note = skip_missing(samples)
    assert [sample.id for sample in kept] == ["100"]
    assert note == f"1 samples were left out (--skip-missing): 1 images missing: {absent}"
    # one image, two questions: both go
    make_vqav2(tmp_path / "vqa")
    (tmp_path / "vqa" / "val2014" / "COCO_val2014_000000000042.jpg").unlink()
    with pytest.raises(UserError, match="all 1 images are missing"):
        skip_missing(load_task("vqav2", tmp_path / "vqa"))


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["images", "annotations", "data", "id", "image_id", "file_name", "caption", "answers"])
            | st.sampled_from(["question_id", "image", "text", "label", "question", "choices", "answer", "test"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(task=st.sampled_from(sorted(MAKERS)), content=JSON_VALUES.map(json.dumps) | st.text(max_size=30))
def test_any_json_is_samples_or_a_user_error(tmp_path: Path, task: str, content: str) -> None:
    make, name = MAKERS[task]
    make(tmp_path)
    write(tmp_path / name, content.encode(errors="replace"))
    with pytest.raises(UserError) as caught:
        load_task(task, tmp_path)
    assert "\n" not in str(caught.value)


# --- which samples


def made(count: int, order: list[int] | None = None) -> list[Sample]:
    rows = order or list(range(count))
    return [Sample(str(k), Path(f"{k}.jpg"), None, ("x",), position=rows[k]) for k in range(count)]


def test_the_draw_is_fares_own() -> None:
    # numpy's legacy generator, seeded as a global, over the rows of the file.
    order = list(np.random.RandomState(1).permutation(5000))
    samples = made(5000, order)
    in_file = sorted(samples, key=lambda sample: sample.position)
    np.random.seed(42)
    expected = {in_file[row].id for row in np.random.choice(5000, 500, replace=False)}
    chosen, note = select(samples, 500)
    assert note is None
    assert {sample.id for sample in chosen} == expected
    assert [sample.id for sample in chosen] == [sample.id for sample in samples if sample.id in expected]


def test_known_draw() -> None:
    # RandomState(42).permutation(10)[:3], the values numpy's frozen legacy stream has always given.
    assert [sample.id for sample in select(made(10), 3)[0]] == ["1", "5", "8"]


def test_sizes_of_the_draw() -> None:
    samples = made(4)
    assert select(samples, None) == (samples, None)
    assert select(samples, 4) == (samples, None)
    everything, note = select(samples, 5)
    assert everything == samples
    assert note == "5 samples were asked for and the set has 4: all of them are used"
    for n, seed in ((0, 42), (-3, 42), (2, -1), (2, 2**32)):
        with pytest.raises(UserError, match="must be"):
            select(samples, n, seed)
    with pytest.raises(UserError, match="no samples"):
        select([], 3)


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 2**32 - 1))
def test_draws_are_distinct_ordered_and_repeatable(count: int, n: int, seed: int) -> None:
    samples = made(count)
    chosen, note = select(samples, n, seed)
    assert len(chosen) == min(n, count)
    assert (note is not None) == (n > count)
    assert [sample.position for sample in chosen] == sorted({sample.position for sample in chosen})
    assert select(samples, n, seed)[0] == chosen


@given(st.lists(st.text(), unique=True), st.integers(1, 9))
def test_chunks_cut_and_keep_everything(ids: list[str], size: int) -> None:
    pieces = chunks(ids, size)
    assert [sample_id for piece in pieces for sample_id in piece] == ids
    assert all(len(piece) == size for piece in pieces[:-1])
    assert all(0 < len(piece) <= size for piece in pieces)


def test_no_chunk_of_nothing() -> None:
    with pytest.raises(UserError, match="at least 1"):
        chunks(["a"], 0)


@given(st.integers(0, 10**30), st.integers(0, 10**30))
def test_numbers_sort_by_value(a: int, b: int) -> None:
    assert (natural_key(str(a)) < natural_key(str(b))) == (a < b)


def test_ids_sort_without_limits() -> None:
    ids = ["x", "10", "9", "", "009", "²", "1" * 5000]
    assert sorted(ids, key=natural_key) == ["009", "9", "10", "1" * 5000, "", "x", "²"]


# --- opening images


def test_modes_become_rgb(tmp_path: Path) -> None:
    colours = np.random.RandomState(0).randint(0, 256, (5, 7, 4), dtype=np.uint8)
    rgb = Image.fromarray(colours[..., :3])
    cases = {
        "L": (Image.fromarray(colours[..., 0]), np.repeat(colours[..., :1], 3, axis=2)),
        # The colour under transparent pixels stays: nothing is blended.
        "RGBA": (Image.fromarray(colours), colours[..., :3]),
        "1": (Image.fromarray(colours[..., 0] > 99), np.repeat((colours[..., :1] > 99) * 255, 3, axis=2)),
    }
    palette = rgb.quantize(8)
    cases["P"] = (palette, np.asarray(palette.convert("RGB")))
    deep = (colours[..., 0].astype(np.uint16)) * 257
    cases["I;16"] = (Image.fromarray(deep), np.repeat(colours[..., :1], 3, axis=2))
    for mode, (image, expected) in cases.items():
        assert image.mode == mode
        path = tmp_path / f"{mode}.png"
        image.save(path)
        opened = open_image(path)
        assert opened.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(opened), expected)


def test_transparent_palettes_and_cmyk(tmp_path: Path) -> None:
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 200, 100, 50])
    palette.save(tmp_path / "p.png", transparency=b"\xff\x00")
    assert open_image(tmp_path / "p.png").getpixel((0, 0)) == (200, 100, 50)
    Image.new("CMYK", (8, 8), (0, 0, 0, 0)).save(tmp_path / "c.jpg")
    assert open_image(tmp_path / "c.jpg").getpixel((4, 4)) == (255, 255, 255)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.fromarray(np.arange(18, dtype=np.uint8).reshape(2, 3, 3))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: a quarter turn clockwise makes it upright
    image.save(tmp_path / "turned.png", exif=exif)
    upright = open_image(tmp_path / "turned.png")
    np.testing.assert_array_equal(np.asarray(upright), np.rot90(np.asarray(image), -1))
    assert open_image(tmp_path / "turned.png").getexif().get(0x0112) is None


def test_two_view_jpegs_of_phones_open(tmp_path: Path) -> None:
    views = [Image.new("RGB", (16, 16), colour) for colour in ((200, 0, 0), (0, 200, 0))]
    views[0].save(tmp_path / "two.jpg", format="MPO", save_all=True, append_images=views[1:])
    red, green, blue = open_image(tmp_path / "two.jpg").getpixel((8, 8))
    assert red > 190
    assert max(green, blue) < 10


def test_unreadable_exif_does_not_cost_the_image(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), (9, 9, 9)).save(tmp_path / "x.jpg", exif=b"Exif\0\0junk that is no TIFF header")
    assert open_image(tmp_path / "x.jpg").size == (4, 4)


def encoded(suffix: str) -> bytes:
    stream = io.BytesIO()
    noise = np.random.RandomState(0).randint(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, format=suffix)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty (0 bytes)"),
        (b"<html>404 Not Found</html>", "is not an image"),
        (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "is not an image"),
        (b"%PDF-1.4\n%%EOF\n", "is not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image"),
        (encoded("PNG")[:1000], "is damaged"),
        (encoded("JPEG")[:-600], "is damaged"),
        (encoded("PNG")[:60] + b"\0" * 400, "is damaged"),
    ],
)
def test_bad_image_files_are_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "bad.jpg"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        open_image(path)
    text = str(caught.value)
    assert words in text
    assert str(path) in text
    assert "\n" not in text


def test_absent_images_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read image .*absent\.png"):
        open_image(tmp_path / "absent.png")
    with pytest.raises(UserError, match="image"):
        open_image(tmp_path)


def test_depths_without_a_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((2, 2), dtype=np.float32)).save(tmp_path / "f.tiff")
    with pytest.raises(UserError, match="32-bit pixels"):
        open_image(tmp_path / "f.tiff")


def test_tiny_images_open_and_strips_do_not(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "one.png")
    assert open_image(tmp_path / "one.png").getpixel((0, 0)) == (1, 2, 3)
    for size in ((20_000, 20), (20, 20_000), (301, 1), (16_400, 100)):
        Image.new("1", size).save(tmp_path / "strip.png")
        with pytest.raises(UserError, match=f"strip.png has {size[0]}x{size[1]} pixels"):
            open_image(tmp_path / "strip.png")


def test_of_an_animation_the_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((250, 0, 0), (0, 250, 0))]
    for suffix in ("gif", "png", "webp"):
        path = tmp_path / f"moving.{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:])
        red, green, _ = open_image(path).getpixel((1, 1))
        assert (red > 200, green < 50) == (True, True)


def test_nothing_is_read_from_pipes_and_devices(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for a writer
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "folder.png").mkdir()
    for name in ("pipe.png", "zero.png", "folder.png"):
        with pytest.raises(UserError, match=f"{name} is no regular file"):
            open_image(tmp_path / name)
        with pytest.raises(UserError, match="1 of 1 images are missing"):
            check_images([Sample("1", tmp_path / name, None, ("x",))])
    (tmp_path / "loop.png").symlink_to("loop.png")
    with pytest.raises(UserError, match="cannot read image"):
        open_image(tmp_path / "loop.png")


def test_links_to_images_are_followed(tmp_path: Path) -> None:
    picture(tmp_path / "elsewhere" / "x.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "elsewhere" / "x.png")
    assert open_image(tmp_path / "link.png").size == (3, 2)


@pytest.mark.parametrize("side", [9600, 14000])
def test_decompression_bombs_are_refused(tmp_path: Path, side: int, recwarn: pytest.WarningsRecorder) -> None:
    # 92 million pixels make Pillow warn, 196 million make it raise; both are one line here.
    path = tmp_path / "bomb.png"
    Image.new("1", (side, side)).save(path)
    with pytest.raises(UserError, match=f"more than {images.MAX_PIXELS} pixels"):
        open_image(path)
    assert not recwarn.list


def test_what_the_package_offers() -> None:
    assert all(hasattr(data, name) for name in data.__all__)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_flipped_bytes_give_an_image_or_a_user_error(tmp_path: Path, draw: st.DataObject) -> None:
    content = bytearray(encoded(draw.draw(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF"]))))
    for _ in range(draw.draw(st.integers(1, 4))):
        content[draw.draw(st.integers(0, len(content) - 1))] = draw.draw(st.integers(0, 255))
    path = tmp_path / "flipped"
    path.write_bytes(content)
    with contextlib.suppress(UserError):
        assert open_image(path).mode == "RGB"
