"""The three parts of the data: images to train on, samples to choose a model on, samples to score it on."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eval_tasks.data import Sample
from eval_tasks.data.rows import RowImage
from eval_tasks.report.html_templates import write_json
from lvlm_radapt.training.images import image_files
from lvlm_radapt.utils.atomic_folder import new_folder
from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.json_files import read_bytes, read_json

SPLIT = "split.json"


@dataclass(frozen=True)
class Split:
    """training: image files. choosing, scoring: sample ids. images: how many images each of these two has. dropped:
    images that were left out of training, because the same file or content is in the other parts."""

    training: tuple[str, ...]
    choosing: tuple[str, ...]
    scoring: tuple[str, ...]
    images: tuple[int, int]
    dropped: int

    def write(self, path: Path) -> None:
        """As a JSON file."""
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> Split:
        """What `write` wrote. UserError for a damaged file."""
        there: dict[str, Any] = read_json(path)
        try:
            training, choosing, scoring = (tuple(map(str, there[one])) for one in ("training", "choosing", "scoring"))
            first, second = map(int, there["images"])
            return cls(training, choosing, scoring, (first, second), int(there["dropped"]))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is damaged: use another --out") from error


def split_by_image(image_of: Mapping[str, str], seed: int) -> tuple[list[str], list[str]]:
    """The ids of the choosing part, a third of the images, and of the scoring part, the others.

    image_of: the image of each sample, by id, in any form in which equal ones are one image. All samples of an image
    go to one part, in their order.
    """
    images = sorted(set(image_of.values()))
    random.Random(f"harden {seed}").shuffle(images)
    chosen = set(images[: round(len(images) / 3)])
    return (
        [one for one, image in image_of.items() if image in chosen],
        [one for one, image in image_of.items() if image not in chosen],
    )


def split_data(samples: Sequence[Sample], photos: Path, *, count: int, seed: int) -> Split:
    """All three parts. Images are known by their content: two files with the same bytes are one image.

    count: at most so many images to train on, drawn by `seed`. UserError for fewer than 3 images in `samples`, and as
    for `image_files`.
    """
    digests = {sample.image: image_digest(sample.image) for sample in samples}
    image_of = {sample.id: digests[sample.image] for sample in samples}
    choosing, scoring = split_by_image(image_of, seed)
    sizes = [len({image_of[one] for one in part}) for part in (choosing, scoring)]
    if min(sizes) < 1:
        raise UserError(
            f"the data have {sum(sizes)} images: too few for a part to choose on and one to score on, give more"
        )
    known = set(digests.values())
    drawn = image_files(photos, limit=count, seed=seed)
    training = [file for file in drawn if image_digest(file) not in known]
    return Split(
        tuple(str(file.resolve()) for file in training),
        tuple(choosing),
        tuple(scoring),
        (sizes[0], sizes[1]),
        len(drawn) - len(training),
    )


def link_images(files: Sequence[str], folder: Path) -> None:
    """Make the new folder `folder` of links to these files; one that is there stays. UserError if it cannot be made."""
    if not folder.exists():
        with new_folder(folder) as made:
            for number, file in enumerate(files):
                (made / f"{number:06d}{Path(file).suffix}").symlink_to(file)


def image_digest(image: Path | RowImage) -> str:
    """SHA-256 of the image's bytes: equal ones are one image."""
    content = image.read() if isinstance(image, RowImage) else read_bytes(image)
    return hashlib.sha256(content).hexdigest()
