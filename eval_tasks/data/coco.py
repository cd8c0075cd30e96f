"""Captions: COCO in its own layout or Karpathy's split, Flickr30k in Karpathy's split."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

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

COCO_LAYOUT = (
    "DIR/dataset_coco.json (Karpathy's split, test part used) or DIR/annotations/captions_val2014.json or "
    "DIR/captions.json, and the images in DIR/val2014/, DIR/train2014/, DIR/images/ or DIR/"
)
FLICKR_LAYOUT = (
    "DIR/dataset_flickr30k.json (Karpathy's split, test part used) and the images in DIR/flickr30k-images/, "
    "DIR/images/ or DIR/"
)
_COCO_FOLDERS = ("val2014", "train2014", "images", "")
_FLICKR_FOLDERS = ("flickr30k-images", "images", "")


class _Image(Row):
    id: int
    file_name: str


class _Annotation(Row):
    image_id: int
    caption: str


class _CaptionFile(Row):
    images: list[_Image]
    annotations: list[_Annotation]


class _Sentence(Row):
    raw: str


class _FlickrImage(Row):
    filename: str
    split: str
    sentences: list[_Sentence]


class _CocoImage(_FlickrImage):
    filepath: str
    cocoid: int


class _FlickrSplit(Row):
    images: list[_FlickrImage]


class _CocoSplit(Row):
    images: list[_CocoImage]


@reads(COCO_LAYOUT)
def load_coco(data_dir: str | os.PathLike[str]) -> list[Sample]:
    """COCO captions in file order; Karpathy's `dataset_coco.json` wins when there, as protocols use it.

    Raises UserError (one line) for a folder or file that is missing, malformed or contradicts itself.
    """
    root = data_folder("coco", data_dir, COCO_LAYOUT)
    for path in (root / "dataset_coco.json", root / "annotations" / "dataset_coco.json"):
        if path.is_file():
            return _karpathy_coco(root, path)
    return _coco_layout(root, _captions_file(root))


@reads(FLICKR_LAYOUT)
def load_flickr30k(data_dir: str | os.PathLike[str]) -> list[Sample]:
    """Flickr30k's test captions (Karpathy's split) in file order; the id is the name without suffix."""
    root = data_folder("flickr30k", data_dir, FLICKR_LAYOUT)
    path = required_file("flickr30k", root, "dataset_flickr30k.json", FLICKR_LAYOUT)
    rows = _test_part(path, read_rows(path, _FlickrSplit).images)
    ids = [Path(safe_name(path, row.filename)).stem for row in rows]
    refuse_duplicates(path, "image", ids)
    folders = ImageFolders(root, _FLICKR_FOLDERS)
    return [
        Sample(
            id=ids[position],
            image=folders.find([row.filename]),
            question=None,
            references=_captions(path, row.filename, (sentence.raw for sentence in row.sentences)),
            position=position,
        )
        for position, row in enumerate(rows)
    ]


def _captions_file(root: Path) -> Path:
    preferred = root / "annotations" / "captions_val2014.json"
    if preferred.is_file():
        return preferred
    found = sorted((root / "annotations").glob("captions_*.json"))
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise UserError(f"{root / 'annotations'} holds several caption files ({names}): keep the one to use")
    if found:
        return found[0]
    return required_file("coco", root, "captions.json", COCO_LAYOUT)


def _coco_layout(root: Path, path: Path) -> list[Sample]:
    content = read_rows(path, _CaptionFile)
    if not content.images:
        raise UserError(f"{path}: the list of images is empty")
    ids = [row.id for row in content.images]
    refuse_duplicates(path, "image id", ids)
    captions: dict[int, list[str]] = {image_id: [] for image_id in ids}
    refuse_unmatched(
        path, (row.image_id for row in content.annotations), captions, "captions without an entry in images: id"
    )
    for annotation in content.annotations:
        captions[annotation.image_id].append(annotation.caption)
    # captions_val2017.json goes with val2017/, and so on.
    folders = ImageFolders(root, (path.stem.removeprefix("captions_"), *_COCO_FOLDERS))
    return [
        Sample(
            id=str(row.id),
            image=folders.find([safe_name(path, row.file_name)]),
            question=None,
            references=_captions(path, row.file_name, captions[row.id]),
            position=position,
        )
        for position, row in enumerate(content.images)
    ]


def _karpathy_coco(root: Path, path: Path) -> list[Sample]:
    rows = _test_part(path, read_rows(path, _CocoSplit).images)
    refuse_duplicates(path, "cocoid", (row.cocoid for row in rows))
    folders = ImageFolders(root, ("", *_COCO_FOLDERS))
    return [
        Sample(
            id=str(row.cocoid),
            image=folders.find([safe_name(path, f"{row.filepath}/{row.filename}"), row.filename]),
            question=None,
            references=_captions(path, row.filename, (sentence.raw for sentence in row.sentences)),
            position=position,
        )
        for position, row in enumerate(rows)
    ]


_SplitImage = TypeVar("_SplitImage", bound=_FlickrImage)


def _test_part(path: Path, rows: Sequence[_SplitImage]) -> list[_SplitImage]:
    test = [row for row in rows if row.split == "test"]
    if not test:
        raise UserError(f"{path}: no image has split 'test' (of {len(rows)})")
    return test


def _captions(path: Path, name: str, captions: Iterable[str]) -> tuple[str, ...]:
    # COCO has captions that end in spaces or a line break; nothing else about them is touched.
    kept = tuple(caption.strip() for caption in captions)
    if not any(kept):
        raise UserError(f"{path}: image {name!r} has no caption")
    return kept
