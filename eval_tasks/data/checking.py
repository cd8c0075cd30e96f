"""What a data folder holds and lacks for a task, told before any model is loaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval_tasks.data import layout, load_task, open_image, select
from eval_tasks.data.hub import is_hub
from eval_tasks.data.rows import RowImage
from eval_tasks.data.selection import first_names, missing_images
from eval_tasks.data.stored import stored_layout
from lvlm_radapt.utils.errors import UserError

_SHOWN = 12  # entries of the folder that are named


@dataclass(frozen=True)
class DataCheck:
    """What was found. problem: why the annotations cannot be read, None where they can. damaged: a line an image."""

    task: str
    folder: Path
    layout: str
    holds: list[str]
    problem: str | None
    note: str | None
    samples: int
    images: int
    missing: list[Path | RowImage]
    damaged: list[str]

    @property
    def ok(self) -> bool:
        """Whether the task can run."""
        return not (self.problem or self.missing or self.damaged)

    def lines(self) -> list[str]:
        """The report, in words."""
        shown = self.holds[:_SHOWN] + (["..."] if len(self.holds) > _SHOWN else [])
        said = [f"{self.folder} holds: {', '.join(shown) or 'nothing'}"]
        if self.problem is None:
            said.append(f"task {self.task}: {self.samples} samples on {self.images} images")
            if self.note:
                said.append(self.note)
            said.append(f"missing images: {len(self.missing)}" + _named(first_names(self.missing, 5)))
            said.append(f"damaged images: {len(self.damaged)}" + _named("; ".join(self.damaged[:5])))
        said.append(f"layout wanted, with {self.folder} for DIR: {self.layout}")
        return said

    def verdict(self) -> str:
        """One line: the task can run, or why it cannot."""
        if self.ok:
            return f"task {self.task} can run on {self.folder}"
        if self.problem is not None:
            return self.problem
        wrong = [(len(self.missing), "missing"), (len(self.damaged), "damaged")]
        counted = " and ".join(f"{count} {what}" for count, what in wrong if count)
        mend = ": put them there" if not self.damaged else ": fetch them again"
        skip = " (or run with --skip-missing)" if not self.damaged and len(self.missing) < self.images else ""
        return f"task {self.task} cannot run on {self.folder}: of {self.images} images {counted} are{mend}{skip}"


def check_data(
    task: str,
    data_dir: str | os.PathLike[str],
    *,
    samples: int | None = None,
    seed: int = 42,
    announce: Callable[[str, int], Callable[[int, str], None]] | None = None,
) -> DataCheck:
    """Read the annotations and open every image that a run with these settings would use (samples None: all).

    announce: called with a title and the number of images; what it returns is called for each. UserError for an unknown
    task and for settings that select nothing; whatever is wrong with the data stands in what is returned.
    """
    folder = Path(data_dir)
    wanted = "; or ".join(filter(None, (layout(task), stored_layout(task.removesuffix("-retrieval")))))
    holds = ["a data set of the hub"] if is_hub(folder) else _holds(folder)
    try:
        everything = load_task(task, folder)
    except UserError as error:
        return DataCheck(task, folder, wanted, holds, str(error), None, 0, 0, [], [])
    chosen, note = select(everything, samples, seed)
    images = list(dict.fromkeys(sample.image for sample in chosen))
    missing = missing_images(chosen)
    advance = announce(f"opening the images of {task}", len(images)) if announce else None
    damaged = _damaged(images, set(missing), advance)
    return DataCheck(task, folder, wanted, holds, None, note, len(chosen), len(images), missing, damaged)


def _damaged(
    images: Sequence[Path | RowImage], missing: set[Path | RowImage], advance: Callable[[int, str], None] | None
) -> list[str]:
    found = []
    for image in images:
        if image not in missing:
            try:
                open_image(image)
            except UserError as error:
                found.append(str(error))
        if advance is not None:
            advance(1, f"{len(found)} damaged" if found else "")
    return found


def _holds(folder: Path) -> list[str]:
    """The entries of the folder, folders with how many they hold; [] when it cannot be read."""
    try:
        return [_entry(path) for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    except OSError:
        return []


def _entry(path: Path) -> str:
    if not path.is_dir():
        return path.name
    try:
        return f"{path.name}/ ({len(os.listdir(path))} entries)"
    except OSError:
        return f"{path.name}/ (cannot be read)"


def _named(names: str) -> str:
    return f" ({names})" if names else ""
