"""Zero-shot data sets as their authors packed them, the way torchvision leaves them on disk.

Every reader takes the data folder, gives the images of the part that is evaluated (the test part where it has labels,
everything where the set has no parts), each with the key of its class, or None when its layout is not there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import RootModel

from eval_tasks.config.validation import read_bytes
from eval_tasks.data.arrays import ArrayImage, ArrayKind, cifar_binary, cifar_python, h5, open_array, stl_labels
from eval_tasks.data.layout import read_rows, safe_name
from eval_tasks.data.rows import RowImage
from lvlm_radapt.utils.errors import UserError


@dataclass(frozen=True)
class Labelled:
    """An image and the key of its class: a folder's name, a WordNet id, a number, or the class's name itself."""

    id: str
    image: Path | RowImage
    key: str


Reader = Callable[[Path], list[Labelled] | None]


@dataclass(frozen=True)
class _Cifar:
    """The test part of one of the two sets, pickled for Python or packed in bytes. labels: how many a record has."""

    pickled: tuple[str, str, str]  # folder, batch, names of the classes
    labels_key: str
    names_key: str
    packed: tuple[str, str, str]
    kind: ArrayKind
    labels: int

    def __call__(self, root: Path) -> list[Labelled] | None:
        folder, batch, names = self.pickled
        found = _there(root, f"{folder}/{batch}", batch)
        if found is not None:
            named_in = found.parent / names
            classes = cifar_python(named_in).get(self.names_key)
            return _in_array("cifar-python", found, cifar_python(found).get(self.labels_key), classes, named_in)
        folder, batch, names = self.packed
        found = _there(root, f"{folder}/{batch}", batch)
        if found is None:
            return None
        own = cifar_binary(found, self.labels)[1][:, -1].tolist()
        return _in_array(self.kind, found, own, _lines(found.parent / names), found.parent / names)


_CIFAR10 = _Cifar(
    ("cifar-10-batches-py", "test_batch", "batches.meta"), "labels", "label_names",
    ("cifar-10-batches-bin", "test_batch.bin", "batches.meta.txt"), "cifar10-binary", 1,
)  # fmt: skip
_CIFAR100 = _Cifar(
    ("cifar-100-python", "test", "meta"), "fine_labels", "fine_label_names",
    ("cifar-100-binary", "test.bin", "fine_label_names.txt"), "cifar100-binary", 2,
)  # fmt: skip


def _stl10(root: Path) -> list[Labelled] | None:
    images = _there(root, "stl10_binary/test_X.bin", "test_X.bin")
    if images is None:
        return None
    own = [label - 1 for label in stl_labels(images.parent / "test_y.bin").tolist()]
    names = images.parent / "class_names.txt"
    return _in_array("stl10", images, own, _lines(names), names)


def _pcam(root: Path) -> list[Labelled] | None:
    name = "camelyonpatch_level_2_split_test_x.h5"
    images = _there(root, f"pcam/{name}", name)
    if images is None:
        return None
    own = [int(label) for label in h5(images.with_name(name.replace("_x.", "_y.")), "y")[:].reshape(-1)]
    return _in_array("pcam", images, own, ["0", "1"], images)


def _in_array(kind: ArrayKind, file: Path, labels: Any, classes: Any, named_in: Path) -> list[Labelled]:
    if not isinstance(classes, list) or len(classes) < 2:
        raise UserError(f"{named_in} holds no list of class names: fetch it again")
    count = len(open_array(kind, str(file)))
    if not isinstance(labels, list) or len(labels) != count:
        raise UserError(f"{file} has {count} images and not as many labels: fetch it again")
    bad = next((label for label in labels if not isinstance(label, int) or not 0 <= label < len(classes)), None)
    if bad is not None:
        raise UserError(f"{file} has the label {bad!r}, and {named_in} names {len(classes)} classes")
    return [
        Labelled(str(row), ArrayImage((str(file),), row, f"{file}, image {row}", kind), str(classes[label]))
        for row, label in enumerate(labels)
    ]


def _sun397(root: Path) -> list[Labelled] | None:
    names = _there(root, "SUN397/ClassName.txt", "ClassName.txt")
    if names is None:
        return None
    found = []
    for line in _lines(names):  # /a/abbey, the folder of the images and, without the letter, the class
        folder = names.parent / safe_name(names, line.strip("/"))
        found += [
            Labelled(f"{line.strip('/')}/{image.stem}", image, line.strip("/").partition("/")[2])
            for image in sorted(folder.glob("*.jpg"))
        ]
    return _some(found, names)


class _Food(RootModel[dict[str, list[str]]]):
    pass


def _food101(root: Path) -> list[Labelled] | None:
    listed = _there(root, "food-101/meta/test.json", "meta/test.json")
    if listed is None:
        return None
    images = listed.parent.parent / "images"
    return _some(
        [
            Labelled(name, images / safe_name(listed, f"{name}.jpg"), key)
            for key, names in read_rows(listed, _Food).root.items()
            for name in names
        ],
        listed,
    )


def _pets(root: Path) -> list[Labelled] | None:
    listed = _there(root, "oxford-iiit-pet/annotations/test.txt", "annotations/test.txt")
    if listed is None:
        return None
    images = listed.parent.parent / "images"
    # great_pyrenees_17 12 2 4
    own = [line.split()[0] for line in _lines(listed)]
    return _some(
        [Labelled(name, images / safe_name(listed, f"{name}.jpg"), name.rpartition("_")[0]) for name in own], listed
    )


def _dtd(root: Path) -> list[Labelled] | None:
    listed = _there(root, "dtd/dtd/labels/test1.txt", "dtd/labels/test1.txt", "labels/test1.txt")
    if listed is None:
        return None
    images = listed.parent.parent / "images"
    return _some(
        [
            Labelled(line.rpartition(".")[0], images / safe_name(listed, line), line.partition("/")[0])
            for line in _lines(listed)
        ],
        listed,
    )


def _aircraft(root: Path) -> list[Labelled] | None:
    listed = _there(
        root,
        "fgvc-aircraft-2013b/data/images_variant_test.txt",
        "data/images_variant_test.txt",
        "images_variant_test.txt",
    )
    if listed is None:
        return None
    images = listed.parent / "images"
    pairs = [line.partition(" ")[::2] for line in _lines(listed)]  # 1514522 707-320
    return _some([Labelled(name, images / safe_name(listed, f"{name}.jpg"), key) for name, key in pairs], listed)


def _tiny_imagenet(root: Path) -> list[Labelled] | None:
    listed = _there(root, "tiny-imagenet-200/val/val_annotations.txt", "val/val_annotations.txt", "val_annotations.txt")
    if listed is None:
        return None
    rows = [line.split("\t") for line in _lines(listed)]  # val_0.JPEG, WordNet id, a box
    if not (listed.parent / "images").is_dir() or any(len(row) < 2 for row in rows):
        return None  # sorted into class folders already
    images = listed.parent / "images"
    return _some(
        [Labelled(row[0].partition(".")[0], images / safe_name(listed, row[0]), row[1]) for row in rows], listed
    )


def _flowers102(root: Path) -> list[Labelled] | None:
    labels = _there(root, "flowers-102/imagelabels.mat", "imagelabels.mat")
    if labels is None:
        return None
    own = _mat(labels, "labels").reshape(-1)
    test = _mat(labels.parent / "setid.mat", "tstid").reshape(-1)
    if not len(test) or min(test) < 1 or max(test) > len(own):
        raise UserError(f"{labels.parent / 'setid.mat'} does not belong to {labels}: fetch both again")
    images = labels.parent / "jpg"
    return [Labelled(str(n), images / f"image_{n:05d}.jpg", str(int(own[n - 1]))) for n in map(int, test)]


def _cars(root: Path) -> list[Labelled] | None:
    listed = _there(root, "stanford_cars/cars_test_annos_withlabels.mat", "cars_test_annos_withlabels.mat")
    if listed is None:
        return None
    meta = listed.parent / "devkit" / "cars_meta.mat"
    names = [str(name) for name in _mat(meta, "class_names").reshape(-1)]
    found = []
    for row in _mat(listed, "annotations").reshape(-1):
        try:
            own, label = str(row["fname"]), int(row["class"])
            key = names[label - 1] if label >= 1 else ""
        except (TypeError, ValueError, IndexError, KeyError) as error:
            raise UserError(f"{listed} has a row without fname and class, or of no class of {meta}") from error
        found.append(Labelled(Path(own).stem, listed.parent / "cars_test" / safe_name(listed, own), key))
    return _some(found, listed)


def _mat(path: Path, key: str) -> Any:
    """The array of that name in a MATLAB file, single values unpacked; UserError without the library or the array."""
    try:
        import scipy.io
    except ImportError as error:
        raise UserError(f"{path} needs the library scipy: pip install 'lvlm-radapt[zero-shot]'") from error
    if not path.is_file():
        raise UserError(f"{path} is missing: fetch the data set again")
    try:
        return scipy.io.loadmat(str(path), squeeze_me=True)[key]
    except Exception as error:  # scipy's reader raises many kinds
        raise UserError(f"{path} is no MATLAB file with an array {key!r}: fetch it again") from error


def _there(root: Path, *names: str) -> Path | None:
    return next((root / name for name in names if (root / name).is_file()), None)


def _lines(path: Path) -> list[str]:
    """The lines that hold something; UserError for what is no text."""
    try:
        text = read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _some(found: list[Labelled], listed: Path) -> list[Labelled]:
    if not found:
        raise UserError(f"{listed} names no images that are there: fetch the data set again")
    bare = next((one for one in found if not one.key), None)
    if bare is not None:
        raise UserError(f"{listed}: image {bare.id!r} has no class")
    return found


READERS: dict[str, tuple[Reader, str]] = {
    "cifar10": (_CIFAR10, "DIR/cifar-10-batches-py/test_batch (or cifar-10-batches-bin/test_batch.bin)"),
    "cifar100": (_CIFAR100, "DIR/cifar-100-python/test (or cifar-100-binary/test.bin)"),
    "stl10": (_stl10, "DIR/stl10_binary/test_X.bin, test_y.bin and class_names.txt"),
    "pcam": (_pcam, "DIR/pcam/camelyonpatch_level_2_split_test_x.h5 and ..._y.h5"),
    "sun397": (_sun397, "DIR/SUN397/ClassName.txt and a/abbey/*.jpg"),
    "food101": (_food101, "DIR/food-101/meta/test.json and images/"),
    "oxford-pets": (_pets, "DIR/oxford-iiit-pet/annotations/test.txt and images/"),
    "dtd": (_dtd, "DIR/dtd/dtd/labels/test1.txt and images/"),
    "fgvc-aircraft": (_aircraft, "DIR/fgvc-aircraft-2013b/data/images_variant_test.txt and images/"),
    "tiny-imagenet": (_tiny_imagenet, "DIR/tiny-imagenet-200/val/val_annotations.txt and images/"),
    "flowers102": (_flowers102, "DIR/flowers-102/imagelabels.mat, setid.mat and jpg/"),
    "stanford-cars": (_cars, "DIR/stanford_cars/cars_test_annos_withlabels.mat, devkit/cars_meta.mat and cars_test/"),
}
"""By task: the reader, and the files that it looks for first."""


def read_layout(task: str, root: Path) -> list[Labelled] | None:
    """The set in its authors' layout, where it has one and that is there."""
    return READERS[task][0](root) if task in READERS else None
