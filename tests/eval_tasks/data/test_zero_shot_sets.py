"""The field's zero-shot data sets in every layout they lie on disk in: the right images, the right class names."""

import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eval_tasks.config.presets import load_task_config
from eval_tasks.data import check_images, layout, load_task, open_image
from eval_tasks.data.arrays import cifar_python
from eval_tasks.data.checking import check_data
from eval_tasks.data.imagefolder import class_names
from eval_tasks.data.rows import open_rows
from eval_tasks.data.set_config import set_config, zero_shot_sets
from eval_tasks.tasks.make_task import make_task
from eval_tasks.tasks.zero_shot import ZeroShotRun
from lvlm_radapt import load_encoder
from lvlm_radapt.utils.errors import UserError
from tests.helpers.cli import Cli

RNG = np.random.default_rng(0)


def picture(path: Path, level: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), (level, 5, 9)).save(path)


def pixels(image: Any) -> np.ndarray:
    return np.asarray(open_image(image))


# --- what is known of the sets


def test_the_shipped_names() -> None:
    assert " ".join(zero_shot_sets()) == (
        "caltech101 caltech256 cifar10 cifar100 dtd eurosat fgvc-aircraft flowers102 food101 imagenet oxford-pets pcam "
        "stanford-cars stl10 sun397 tiny-imagenet"
    )
    for name in zero_shot_sets():
        config = set_config(name)
        assert (config.name, load_task_config(name).type) == (name, "zero_shot")
        assert len(config.names) in (0, config.classes)
        assert len({text.casefold() for text in config.names.values()}) == len(config.names)
        assert all(template.count("{}") == 1 for template in config.templates)
        assert all(text == " ".join(text.split()) for text in config.names.values())
    imagenet = set_config("imagenet")
    assert [*imagenet.names] == sorted(imagenet.names)  # the order of the labels
    assert len(imagenet.templates) == 80
    known = {
        "n01440764": "tench",
        "n02012849": "crane bird",
        "n03126707": "construction crane",
        "n04008634": "projectile",
    }
    known |= {"n02085620": "Chihuahua", "n07753592": "banana", "n15075141": "toilet paper", "n03773504": "missile"}
    assert {key: imagenet.names[key] for key in known} == known
    assert set_config("flowers102").names["1"] == "pink primrose"
    assert set_config("flowers102").names["74"] == "rose"
    assert set_config("caltech101").names["Faces_easy"] == "centered face"
    assert set_config("eurosat").named("Annual Crop") == set_config("eurosat").named("AnnualCrop") == "annual crop land"


@pytest.mark.parametrize("task", zero_shot_sets())
def test_every_set_is_read_from_class_folders_and_tells_its_layout(task: str, tmp_path: Path) -> None:
    keys = [*set_config(task).names][:3] or ["one_thing", "another", "a third"]
    if task == "tiny-imagenet":
        keys = [*set_config("imagenet").names][:3]
    for key in keys:
        for part in ("train", "test", "val"):
            picture(tmp_path / part / key / "a.png", level=len(part))
    found = load_task(task, tmp_path)
    assert {s.id for s in found} == {f"{key}/a" for key in keys}
    assert {s.image.parent.parent.name for s in found} == {"test"}
    table = set_config("imagenet" if task == "tiny-imagenet" else task).names
    wanted = {table[key] for key in keys} if table else {"one thing", "another", "a third"}
    if task == "oxford-pets":
        wanted = {"One Thing", "Another", "A Third"}
    assert set(class_names(found)) == wanted
    own = {key: f"my {n}" for n, key in enumerate(keys)}
    (tmp_path / "classnames.json").write_text(json.dumps(own))
    assert set(class_names(load_task(task, tmp_path))) == {*own.values()}
    check = check_data(task, tmp_path)
    assert check.ok
    assert layout(task) in check.layout
    assert "DIR/val" in layout(task)


def test_the_archives_own_folders(tmp_path: Path) -> None:
    for root, keys in {
        "euro/eurosat/2750": ("SeaLake", "Forest"),
        "c101/caltech101/101_ObjectCategories": ("BACKGROUND_Google", "car_side", "Faces"),
        "c256/caltech256/256_ObjectCategories": ("009.bear", "251.airplanes-101", "204.sunflower-101"),
        "inet/val": ("n01440764", "n15075141"),
    }.items():
        for key in keys:
            picture(tmp_path / root / key / "x.jpg")
    assert class_names(load_task("eurosat", tmp_path / "euro")) == ["forest", "lake or sea"]
    assert class_names(load_task("caltech101", tmp_path / "c101")) == ["off-center face", "side of a car"]
    assert class_names(load_task("caltech256", tmp_path / "c256")) == ["bear", "sunflower", "airplanes"]
    assert class_names(load_task("imagenet", tmp_path / "inet")) == ["tench", "toilet paper"]


# --- arrays


def pickled(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))


def cifar_images(count: int) -> tuple[np.ndarray, np.ndarray]:
    """(as CIFAR stores them, upright)."""
    flat = RNG.integers(0, 256, (count, 3072), dtype=np.uint8)
    upright = np.stack(
        [np.stack([row[c * 1024 : (c + 1) * 1024].reshape(32, 32) for c in range(3)], -1) for row in flat]
    )
    return flat, upright


@pytest.mark.parametrize("packed", [False, True])
def test_cifar(packed: bool, tmp_path: Path) -> None:
    flat, upright = cifar_images(3)
    names = ["airplane", "automobile", "bird"]
    if packed:
        folder = tmp_path / "ten" / "cifar-10-batches-bin"
        folder.mkdir(parents=True)
        (folder / "test_batch.bin").write_bytes(
            b"".join(bytes([y]) + row.tobytes() for y, row in zip((2, 0, 1), flat, strict=True))
        )
        (folder / "batches.meta.txt").write_text("\n".join(names) + "\n\n")
        folder = tmp_path / "hundred" / "cifar-100-binary"
        folder.mkdir(parents=True)
        (folder / "test.bin").write_bytes(
            b"".join(bytes([9, y]) + row.tobytes() for y, row in zip((1, 0, 1), flat, strict=True))
        )
        (folder / "fine_label_names.txt").write_text("apple\naquarium_fish\n")
    else:
        folder = tmp_path / "ten" / "cifar-10-batches-py"
        pickled(
            folder / "test_batch", {"batch_label": "x", "labels": [2, 0, 1], "data": flat, "filenames": ["a", "b", "c"]}
        )
        pickled(folder / "batches.meta", {"label_names": names, "num_vis": 3072})
        folder = tmp_path / "hundred" / "cifar-100-python"
        pickled(folder / "test", {"fine_labels": [1, 0, 1], "coarse_labels": [0, 0, 0], "data": flat})
        pickled(folder / "meta", {"fine_label_names": ["apple", "aquarium_fish"], "coarse_label_names": ["x"]})
    for root in (tmp_path / "ten", folder.parent.parent / "ten" / f"cifar-10-batches-{'bin' if packed else 'py'}"):
        found = load_task("cifar10", root)
        assert [s.references for s in found] == [("bird",), ("airplane",), ("automobile",)]
        for sample, wanted in zip(found, upright, strict=True):
            assert np.array_equal(pixels(sample.image), wanted)
    found = load_task("cifar100", tmp_path / "hundred")
    assert [s.references[0] for s in found] == ["aquarium fish", "apple", "aquarium fish"]
    assert np.array_equal(pixels(found[2].image), upright[2])
    check_images(found)
    assert check_data("cifar100", tmp_path / "hundred").ok


class _Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch evil-was-here",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"labels": [0], "data": _Evil()}, "it names posix.system, which is not read"),
        ({"labels": [0], "data": np.zeros((1, 3072))}, "an array that is not of bytes"),
        ({"labels": [0], "data": np.zeros((1, 100), np.uint8)}, "no images of 32x32"),
        ({"labels": [0, 1], "data": np.zeros((1, 3072), np.uint8)}, "1 images and not as many labels"),
        ({"labels": [7], "data": np.zeros((1, 3072), np.uint8)}, "has the label 7, and .* names 2 classes"),
        ({"labels": ["a"], "data": np.zeros((1, 3072), np.uint8)}, "has the label 'a'"),
        ([1], "holds no dictionary"),
        (b"\x80\x02no pickle", "is no batch of CIFAR"),
        (b"", "is no batch of CIFAR"),
    ],
)
def test_a_foreign_pickle_runs_nothing(
    content: Any, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pickled(tmp_path / "batches.meta", {"label_names": ["a", "b"]})
    if isinstance(content, bytes):
        (tmp_path / "test_batch").write_bytes(content)
    else:
        pickled(tmp_path / "test_batch", content)
    with pytest.raises(UserError, match=words) as caught:
        load_task("cifar10", tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "evil-was-here").exists()


def test_the_plain_reader_reads_arrays_as_numpy_does(tmp_path: Path) -> None:
    array = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
    pickled(tmp_path / "x", {"data": array, "n": 3, "names": ["a"]})
    read = cifar_python(tmp_path / "x")
    assert (read["n"], read["names"]) == (3, ["a"])
    assert np.array_equal(read["data"], array)


def test_stl10(tmp_path: Path) -> None:
    upright = RNG.integers(0, 256, (2, 96, 96, 3), dtype=np.uint8)
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    # colour after colour, column after column
    (folder / "test_X.bin").write_bytes(upright.transpose(0, 3, 2, 1).tobytes())
    (folder / "test_y.bin").write_bytes(bytes([2, 1]))
    (folder / "class_names.txt").write_text("airplane\nbird\n")
    found = load_task("stl10", tmp_path)
    assert [s.references[0] for s in found] == ["bird", "airplane"]
    for sample, wanted in zip(found, upright, strict=True):
        assert np.array_equal(pixels(sample.image), wanted)
    tmp_path = tmp_path / "cut"
    tmp_path.mkdir()
    (tmp_path / "test_X.bin").write_bytes(b"12345")
    for name in ("test_y.bin", "class_names.txt"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(UserError, match="5 bytes long, no multiple of 27648"):
        load_task("stl10", tmp_path)


# --- lists


def test_lists_of_images(tmp_path: Path) -> None:
    def listed(task: str, files: dict[str, str], images: list[str]) -> list[tuple[str, str, str]]:
        root = tmp_path / task
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        for name in images:
            picture(root / name)
        found = load_task(task, root)
        check_images(found)
        return [(s.id, s.image.relative_to(root).as_posix(), s.references[0]) for s in found]

    assert listed(
        "food101",
        {"food-101/meta/test.json": json.dumps({"apple_pie": ["apple_pie/1"], "baklava": ["baklava/2"]})},
        ["food-101/images/apple_pie/1.jpg", "food-101/images/baklava/2.jpg", "food-101/images/baklava/3.jpg"],
    ) == [
        ("apple_pie/1", "food-101/images/apple_pie/1.jpg", "apple pie"),
        ("baklava/2", "food-101/images/baklava/2.jpg", "baklava"),
    ]
    assert listed(
        "oxford-pets",
        {"oxford-iiit-pet/annotations/test.txt": "Abyssinian_201 1 1 1\nstaffordshire_bull_terrier_7 35 2 23\n"},
        ["oxford-iiit-pet/images/Abyssinian_201.jpg", "oxford-iiit-pet/images/staffordshire_bull_terrier_7.jpg"],
    ) == [
        ("Abyssinian_201", "oxford-iiit-pet/images/Abyssinian_201.jpg", "Abyssinian"),
        (
            "staffordshire_bull_terrier_7",
            "oxford-iiit-pet/images/staffordshire_bull_terrier_7.jpg",
            "Staffordshire Bull Terrier",
        ),
    ]
    assert listed(
        "dtd",
        {"dtd/dtd/labels/test1.txt": "banded/banded_0004.jpg\npolka-dotted/polka-dotted_0001.jpg\n"},
        ["dtd/dtd/images/banded/banded_0004.jpg", "dtd/dtd/images/polka-dotted/polka-dotted_0001.jpg"],
    ) == [
        ("banded/banded_0004", "dtd/dtd/images/banded/banded_0004.jpg", "banded"),
        ("polka-dotted/polka-dotted_0001", "dtd/dtd/images/polka-dotted/polka-dotted_0001.jpg", "polka-dotted"),
    ]
    base = "fgvc-aircraft-2013b/data"
    assert listed(
        "fgvc-aircraft",
        {f"{base}/images_variant_test.txt": "0062765 DH-82\n1514522 Falcon 2000\n"},
        [f"{base}/images/0062765.jpg", f"{base}/images/1514522.jpg"],
    ) == [("0062765", f"{base}/images/0062765.jpg", "DH-82"), ("1514522", f"{base}/images/1514522.jpg", "Falcon 2000")]
    assert listed(
        "sun397",
        {"SUN397/ClassName.txt": "/a/airplane_cabin\n/a/apse/indoor\n"},
        ["SUN397/a/airplane_cabin/sun_1.jpg", "SUN397/a/apse/indoor/sun_2.jpg"],
    ) == [
        ("a/airplane_cabin/sun_1", "SUN397/a/airplane_cabin/sun_1.jpg", "airplane cabin"),
        ("a/apse/indoor/sun_2", "SUN397/a/apse/indoor/sun_2.jpg", "apse indoor"),
    ]
    base = "tiny-imagenet-200"
    assert listed(
        "tiny-imagenet",
        {
            f"{base}/val/val_annotations.txt": "val_0.JPEG\tn01443537\t0\t0\t9\t9\nval_1.JPEG\tn99999999\t0\t0\t9\t9\n",
            f"{base}/words.txt": "n99999999\tdragonet, fish\nn01443537\tgoldfish, Carassius auratus\n",
        },
        [f"{base}/val/images/val_0.JPEG", f"{base}/val/images/val_1.JPEG"],
    ) == [
        ("val_0", f"{base}/val/images/val_0.JPEG", "goldfish"),
        ("val_1", f"{base}/val/images/val_1.JPEG", "dragonet"),
    ]


def test_matlab_files(tmp_path: Path) -> None:
    savemat = pytest.importorskip("scipy.io", reason="the extra zero-shot is not installed").savemat
    folder = tmp_path / "flowers" / "flowers-102"
    for number in (1, 2, 3):
        picture(folder / "jpg" / f"image_{number:05d}.jpg")
    savemat(folder / "imagelabels.mat", {"labels": np.array([[77, 1, 102]], np.uint8)})
    savemat(folder / "setid.mat", {"trnid": np.array([[2]]), "tstid": np.array([[1, 3]], np.uint16)})
    found = load_task("flowers102", tmp_path / "flowers")
    assert [(s.id, s.image.name, s.references[0]) for s in found] == [
        ("1", "image_00001.jpg", "passion flower"),
        ("3", "image_00003.jpg", "blackberry lily"),
    ]
    savemat(folder / "setid.mat", {"tstid": np.array([[1, 9]], np.uint16)})
    with pytest.raises(UserError, match="does not belong to"):
        load_task("flowers102", tmp_path / "flowers")
    folder = tmp_path / "cars" / "stanford_cars"
    picture(folder / "cars_test" / "00001.jpg")
    picture(folder / "cars_test" / "00002.jpg")
    (folder / "devkit").mkdir()
    names = np.empty((1, 2), dtype=object)
    names[0, :] = ["AM General Hummer SUV 2000", "Ram C/V Cargo Van Minivan 2012"]
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": names})
    rows = np.array([[("00001.jpg", 2), ("00002.jpg", 1)]], dtype=[("fname", object), ("class", object)])
    savemat(folder / "cars_test_annos_withlabels.mat", {"annotations": rows})
    found = load_task("stanford-cars", tmp_path / "cars")
    assert [(s.id, s.references[0]) for s in found] == [
        ("00001", "Ram C/V Cargo Van Minivan 2012"),
        ("00002", "AM General Hummer SUV 2000"),
    ]
    (folder / "cars_test_annos_withlabels.mat").write_bytes(b"no matlab file, but long enough to be looked at" * 9)
    with pytest.raises(UserError, match="is no MATLAB file with an array 'annotations'"):
        load_task("stanford-cars", tmp_path / "cars")


def test_patch_camelyon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "camelyonpatch_level_2_split_test_x.h5"
    images, labels = tmp_path / "pcam" / name, tmp_path / "pcam" / name.replace("_x", "_y")
    images.parent.mkdir()
    try:
        import h5py
    except ImportError:  # what a user without the extra is told
        images.write_bytes(b"x")
        with pytest.raises(UserError, match=r"needs the library h5py: pip install 'lvlm-radapt\[zero-shot\]'"):
            load_task("pcam", tmp_path)
        return
    content = RNG.integers(0, 256, (3, 96, 96, 3), dtype=np.uint8)
    with h5py.File(images, "w") as file:
        file["x"] = content
    with h5py.File(labels, "w") as file:
        file["y"] = np.array([1, 0, 1]).reshape(3, 1, 1, 1)
    found = load_task("pcam", tmp_path)
    assert [s.references[0] for s in found] == [set_config("pcam").names[key] for key in "101"]
    assert np.array_equal(pixels(found[1].image), content[1])
    labels.write_bytes(b"no")
    with pytest.raises(UserError, match="is no HDF5 file with an array 'y'"):
        load_task("pcam", tmp_path)


# --- what is wrong with a folder


@pytest.mark.parametrize(
    ("task", "files", "words"),
    [
        ("eurosat", {"notes.txt": ""}, "holds no class folders; task eurosat wants a folder of images"),
        ("imagenet", {"n00000001/": "", "n01440764/": ""}, "nobody tells the name of class 'n00000001'"),
        ("flowers102", {"0/": "", "1/": ""}, "nobody tells the name of class '0'"),
        ("dtd", {"a_b/": "", "a b/": ""}, "both called 'a b'"),
        ("food101", {"food-101/meta/test.json": "{}"}, "names no images that are there"),
        ("food101", {"food-101/meta/test.json": "[1]"}, "test.json"),
        ("food101", {"food-101/meta/test.json": '{"a": ["../../x"]}'}, "does not stay inside the data folder"),
        ("dtd", {"dtd/dtd/labels/test1.txt": "banded/a.jpg\n"}, "has images of 1 class, two are the least"),
        ("dtd", {"labels/test1.txt": "a/1.jpg\nb/1.jpg\na/1.jpg\n"}, "image 'a/1' occurs more than once"),
        ("fgvc-aircraft", {"images_variant_test.txt": "0001\n"}, "image '0001' has no class"),
        ("stl10", {"test_X.bin": "x" * 27648, "test_y.bin": "\x01"}, "cannot read .*class_names.txt"),
    ],
)
def test_a_wrong_folder_is_told_in_one_line(
    task: str, files: dict[str, str], words: str, tmp_path: Path, cli: Cli
) -> None:
    for name, text in files.items():
        if name.endswith("/"):
            picture(tmp_path / "set" / name / "1.png")
        else:
            (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "set" / name).write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        load_task(task, tmp_path / "set")
    assert "\n" not in str(caught.value)
    code, _, err = cli("data", "check", task, "--data", tmp_path / "set")  # stdout tells the layout
    assert (code, len(err.strip().splitlines())) == (2, 1), err


# --- parquet


def stored(level: int) -> dict[str, Any]:
    encoded = io.BytesIO()
    Image.new("RGB", (4, 3), (level, 0, 9)).save(encoded, format="PNG")
    return {"bytes": encoded.getvalue(), "path": None}


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    library = pytest.importorskip("datasets", reason="the extra hf is not installed")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    open_rows.cache_clear()
    return library


def parquet(library: Any, path: Path, labels: list[Any], names: list[str] | None, **columns: str) -> None:
    image, label = columns.get("image", "image"), columns.get("label", "label")
    features = library.Features({image: library.Image(), label: library.ClassLabel(names=names)}) if names else None
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = {image: [stored(level) for level in range(len(labels))], label: labels}
    made = library.Dataset.from_dict(rows) if features is None else library.Dataset.from_dict(rows, features=features)
    made.to_parquet(path)


def test_parquet_files(datasets: Any, tmp_path: Path) -> None:
    def names_in(task: str, folder: str) -> list[str]:
        found = load_task(task, tmp_path / folder)
        assert [pixels(s.image)[0, 0, 0] for s in found] == [int(s.id) for s in found]
        return [s.references[0] for s in found]

    parquet(datasets, tmp_path / "a/data/train-00000.parquet", [0], ["x", "y"], image="img")
    parquet(datasets, tmp_path / "a/data/test-00000.parquet", [1, 0], ["airplane", "aquarium_fish"], image="img")
    assert names_in("cifar10", "a") == ["aquarium fish", "airplane"]
    parquet(datasets, tmp_path / "b/valid-0.parquet", [1, 0], ["n01443537", "n01629819"])
    assert names_in("tiny-imagenet", "b") == ["fire salamander", "goldfish"]
    parquet(datasets, tmp_path / "c/test.parquet", [1, 0], ["Annual Crop", "Sea_Lake"], label="labels")
    assert names_in("eurosat", "c") == ["lake or sea", "annual crop land"]
    # the hub's ImageNet: WordNet's words in the order of the ids, not all first ones distinct
    words = [f"{name}, and more" for name in set_config("imagenet").names.values()]
    words[134], words[517] = "crane", "crane"
    labels = [134, 517, 999]
    parquet(
        datasets, tmp_path / "d/val.parquet", labels, [f"{n} {w}" if w == "crane" else w for n, w in enumerate(words)]
    )
    assert names_in("imagenet", "d") == ["crane bird", "construction crane", "toilet paper"]
    parquet(datasets, tmp_path / "e/val.parquet", [0, 999], None)
    assert names_in("imagenet", "e") == ["tench", "toilet paper"]
    parquet(datasets, tmp_path / "f/test.parquet", [0, 1, 1], None)
    assert names_in("pcam", "f") == [set_config("pcam").names[key] for key in "011"]
    parquet(datasets, tmp_path / "g/test.parquet", ["cat", "dog"], None)
    assert names_in("dtd", "g") == ["cat", "dog"]


def test_wrong_parquet_files(datasets: Any, tmp_path: Path) -> None:
    def complaint(task: str, folder: str) -> str:
        with pytest.raises(UserError) as caught:
            load_task(task, tmp_path / folder)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    parquet(datasets, tmp_path / "a/test.parquet", [0, -1], ["x", "y"])
    assert "has the label -1, which is no class" in complaint("dtd", "a")
    parquet(datasets, tmp_path / "b/test.parquet", [0, 1], None)
    assert "nobody tells the name of class '0' of food101" in complaint("food101", "b")
    (tmp_path / "b/classnames.txt").write_text("0 apple pie\n1 baklava\n")
    assert class_names(load_task("food101", tmp_path / "b")) == ["apple pie", "baklava"]
    parquet(datasets, tmp_path / "c/test.parquet", [0, 1], None, label="other")
    assert "have columns image, other; task dtd wants image and label" in complaint("dtd", "c")
    parquet(datasets, tmp_path / "d/train.parquet", [0, 1], None)
    parquet(datasets, tmp_path / "d/extra.parquet", [0, 1], None)
    assert "is scored on test or val" in complaint("dtd", "d")
    parquet(datasets, tmp_path / "e/test.parquet", [0.5, 1.5], None)
    assert "has the label 0.5: a number or a name is wanted" in complaint("dtd", "e")


# --- how the classes are asked for


def bound(protocol: str, tmp_path: Path) -> ZeroShotRun:
    for key in ("Forest", "Sea_Lake"):
        picture(tmp_path / key / "1.png")
    samples = load_task("eurosat", tmp_path)
    made = make_task("eurosat", protocol).bind(load_encoder("tiny-clip"), samples, samples, batch_size=2)
    assert isinstance(made, ZeroShotRun)
    return made


def test_presets_choose_how_classes_are_asked_for(tmp_path: Path) -> None:
    assert bound("fare", tmp_path).classifier.templates == ("a photo of a {}",)
    assert bound("native", tmp_path).classifier.templates == ("a photo of a {}.",)
    own = bound("clip-benchmark", tmp_path)
    assert own.classifier.templates == tuple(set_config("eurosat").templates)
    (tmp_path / "classnames.txt").write_text("Forest Mixed_Forest/Wood\nSea_Lake SEA-LAKE\n")
    tecoa = bound("tecoa", tmp_path)
    assert tecoa.classifier.templates == ("This is a photo of a {}",)
    assert tecoa.classifier.spelled == ("mixed forest wood", "sea lake")
    assert tecoa.classifier.class_names == ("Mixed_Forest/Wood", "SEA-LAKE")
    assert bound("native", tmp_path).classifier.spelled == ("Mixed_Forest/Wood", "SEA-LAKE")
    assert any("has 2 classes where eurosat has 10" in said for said in tecoa.remarks())
