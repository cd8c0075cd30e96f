"""Folders of images to train on: what is found, drawn, left out, and how it is put into batches."""

import itertools
from pathlib import Path

import pytest
from PIL import Image

from lvlm_radapt.loading.load import load_any
from lvlm_radapt.training.images import batches_from, batches_of, image_files, images_digest, load_pixels
from tests.helpers.failures import one_line


def _save(path: Path, shade: int, size: tuple[int, int] = (70, 64)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, 0, 255 - shade)).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(9):
        _save(tmp_path / "images" / ("a" if i % 2 else "b/c") / f"{i}.png", 20 * i)
    _save(tmp_path / "images" / ".hidden" / "x.png", 0)
    _save(tmp_path / "images" / "._resource.png", 0)
    (tmp_path / "images" / "notes.txt").write_text("no image")
    return tmp_path / "images"


def test_every_image_is_found_below_the_folder_and_hidden_ones_are_not(folder: Path) -> None:
    found = image_files(folder)
    assert [path.name for path in found] == [
        "1.png",
        "3.png",
        "5.png",
        "7.png",
        "0.png",
        "2.png",
        "4.png",
        "6.png",
        "8.png",
    ]


def test_a_limited_draw_is_the_same_for_a_seed_and_another_for_another(folder: Path) -> None:
    drawn = image_files(folder, limit=5, seed=1)
    assert drawn == image_files(folder, limit=5, seed=1)
    assert len(set(drawn)) == 5
    assert drawn != image_files(folder, limit=5, seed=2)
    assert drawn == image_files(folder, limit=9, seed=1)[:5]
    assert set(image_files(folder, limit=100, seed=3)) == set(image_files(folder))


def test_unreadable_images_are_left_out_by_name_and_counted_and_others_take_their_place(folder: Path) -> None:
    (folder / "a" / "bad.png").write_bytes(b"no image")
    (folder / "a" / "empty.jpg").touch()
    told: list[str] = []
    found = image_files(folder, tell=told.append)
    assert len(found) == 9
    assert told == [f"{folder}: 2 unreadable images left out: a/bad.png, a/empty.jpg"]
    assert len(image_files(folder, limit=9, seed=0)) == 9


def test_bad_folders_end_in_one_line(tmp_path: Path) -> None:
    with one_line("is no folder"):
        image_files(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with one_line("holds no images"):
        image_files(tmp_path / "empty")
    (tmp_path / "empty" / "a.png").write_bytes(b"x")
    (tmp_path / "empty" / "b.png").touch()
    with one_line("none of the 2 images in .* can be opened.*a.png"):
        image_files(tmp_path / "empty")
    with one_line("at least 1 image"):
        image_files(tmp_path, limit=0)


def test_the_digest_is_of_what_the_images_hold(folder: Path, tmp_path: Path) -> None:
    files = image_files(folder)
    assert images_digest(files) == images_digest(files[::-1])
    files[0].rename(tmp_path / "renamed.png")
    assert images_digest([tmp_path / "renamed.png", *files[1:]]) == images_digest(
        [*files[1:], tmp_path / "renamed.png"]
    )
    _save(tmp_path / "renamed.png", 255)
    before = images_digest([tmp_path / "renamed.png", *files[1:]])
    _save(tmp_path / "renamed.png", 254)
    assert images_digest([tmp_path / "renamed.png", *files[1:]]) != before


def test_an_epoch_holds_every_image_once_and_another_is_shuffled_anew(folder: Path) -> None:
    model, files = load_any("tiny-clip"), image_files(folder)
    first = batches_of(model, files, 3, seed=0, epoch=0)
    assert sorted(itertools.chain(*first)) == sorted(files)
    assert first == batches_of(model, files, 3, seed=0, epoch=0)
    assert first != batches_of(model, files, 3, seed=0, epoch=1)
    assert first != batches_of(model, files, 3, seed=1, epoch=0)
    assert [len(batch) for batch in batches_of(model, files, 4, seed=0, epoch=0)] == [4, 4]


def test_batches_share_a_canvas_where_images_keep_their_shape(folder: Path) -> None:
    for i in range(5):
        _save(folder / "wide" / f"{i}.png", 10 * i, size=(140, 64))
    model = load_any("tiny-qwen")
    for batch in batches_of(model, image_files(folder), 2, seed=0, epoch=0):
        assert len({path.parent.name == "wide" for path in batch}) == 1
        load_pixels(model, batch)  # refuses mixed canvases
    with one_line(r"14 images are too few for a batch of 10, at most 9 of one canvas shape"):
        batches_of(model, image_files(folder), 10, seed=0, epoch=0)


def test_too_few_images_for_a_batch_end_in_one_line(folder: Path) -> None:
    model, files = load_any("tiny-clip"), image_files(folder)
    with one_line("9 images are too few for a batch of 16"):
        next(batches_from(model, files, 16))
    with one_line("at least 1"):
        next(batches_from(model, files, 0))


@pytest.mark.parametrize("skip", [1, 2, 3, 7])
def test_batches_after_a_skip_are_those_that_came_without(folder: Path, skip: int) -> None:
    model, files = load_any("tiny-clip"), image_files(folder)
    whole = [*itertools.islice(batches_from(model, files, 3, seed=5), skip + 2)]
    assert [*itertools.islice(batches_from(model, files, 3, seed=5, skip=skip), 2)] == whole[skip:]
