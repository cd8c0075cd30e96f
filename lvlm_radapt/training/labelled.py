"""Images with their classes, where a method needs them, and what is held back to watch it on."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from lvlm_radapt.training.images import image_files, images_digest
from lvlm_radapt.utils.class_folders import class_folders, named_classes
from lvlm_radapt.utils.errors import UserError

HELD_BACK = 32  # images at most, and a tenth of all


@dataclass(frozen=True)
class TrainingImages:
    """Images to train on, and `watched` ones that are held back. `names` of the classes and by image its class's
    number there; both empty where no classes are asked for. `left_out`: a line about unreadable ones, or None."""

    files: tuple[Path, ...]
    watched: tuple[Path, ...]
    names: tuple[str, ...]
    class_of: dict[Path, int]
    digest: str
    left_out: str | None

    @classmethod
    def of(cls, folder: Path, *, limit: int | None, seed: int, classes: bool) -> TrainingImages:
        """The images of any folder or, with `classes`, of a folder of images for each class (ImageFolder).

        limit: at most so many, drawn by `seed`.

        UserError, one line: no folder, no images in it, none that can be opened, fewer than two; no class folders.
        """
        root = folder.expanduser()
        said: list[str] = []
        files = image_files(root, limit=limit, seed=seed, tell=said.append)
        names: list[str] = []
        class_of: dict[Path, int] = {}
        if classes:
            found = class_folders(root)
            names = list(named_classes(root, list(found)).values())
            class_of = {path: number for number, images in enumerate(found.values()) for _, path in images}
            files = [file for file in files if file in class_of]
        if len(files) < 2:
            raise UserError(f"{root}: {len(files)} images are too few to train on and watch: give more")
        files = sorted(files)
        random.Random(f"held back {seed}").shuffle(files)
        held = max(1, min(HELD_BACK, len(files) // 10))
        return cls(
            files=tuple(files[held:]),
            watched=tuple(files[:held]),
            names=tuple(names),
            class_of=class_of,
            digest=images_digest(files),
            left_out=said[0] if said else None,
        )
