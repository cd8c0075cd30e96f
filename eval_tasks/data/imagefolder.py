"""Classification: a folder for each class, as torchvision's `ImageFolder` lays images out."""

from __future__ import annotations

import os

from eval_tasks.data.layout import data_folder
from eval_tasks.data.loader import reads
from eval_tasks.data.sample import Sample
from lvlm_radapt.utils.class_folders import LAYOUT as IMAGEFOLDER_LAYOUT
from lvlm_radapt.utils.class_folders import class_folders, named_classes

__all__ = ["IMAGEFOLDER_LAYOUT", "class_names", "load_imagefolder"]


@reads(IMAGEFOLDER_LAYOUT)
def load_imagefolder(data_dir: str | os.PathLike[str]) -> list[Sample]:
    """Every image, class after class in the order of the folders' names: id CLASS/FILE, without the file's suffix, and
    the class's name as the one reference.

    Hidden files and folders are passed over, and so is what is no image by its suffix. UserError for a folder
    without classes, a class without images, two images of one id, and class names that are not right.
    """
    root = data_folder("imagefolder", data_dir, IMAGEFOLDER_LAYOUT)
    found = class_folders(root)
    names = named_classes(root, list(found))
    pairs = [(folder, own, file) for folder, files in found.items() for own, file in files]
    return [
        Sample(id=own, image=file, question=None, references=(names[folder],), position=position)
        for position, (folder, own, file) in enumerate(pairs)
    ]


def class_names(samples: list[Sample]) -> list[str]:
    """The names of the classes of all samples of a data set, in order: the choices of a zero-shot classifier."""
    return list(dict.fromkeys(s.references[0] for s in sorted(samples, key=lambda s: s.position)))
