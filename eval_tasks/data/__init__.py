"""Data sets as their authors store them, read into `Sample`s."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from eval_tasks.config.task_files import task_loader, task_names
from eval_tasks.data.hub import is_hub
from eval_tasks.data.loader import Loader, find_loader
from eval_tasks.data.sample import Sample, natural_key
from eval_tasks.data.selection import check_images, chunks, select, skip_missing
from eval_tasks.data.stored import load_hub, load_stored, stored_rows
from eval_tasks.data.zero_shot_sets import LOADERS as ZERO_SHOT
from lvlm_radapt.utils.images import image_key, open_image

if TYPE_CHECKING:
    from eval_tasks.config.presets import TaskConfig

__all__ = [
    "Sample",
    "check_images",
    "chunks",
    "image_key",
    "layout",
    "load_task",
    "open_image",
    "select",
    "skip_missing",
    "sort_samples",
    "tasks",
]


def tasks() -> dict[str, TaskConfig]:
    """Every shipped task by name, with its description and type."""
    from eval_tasks.config.presets import load_task_config  # brings torch, which data sets do without

    return {name: load_task_config(name) for name in task_names()}


def layout(task: str) -> str:
    """The files the task wants in its data folder, on one line."""
    return _loader(task).layout


def load_task(task: str, data_dir: str | os.PathLike[str]) -> list[Sample]:
    """All samples of a shipped task, sorted by id (numbers by value). Whether the images are there is not asked here:
    `check_images` does that for the selected ones. data_dir: a folder, or `hf:OWNER/NAME` of the hub.

    Raises UserError (one line) for an unknown task or a data folder that is missing, incomplete or wrong.
    """
    load = _loader(task)
    if is_hub(data_dir):
        return sort_samples(load_hub(task.removesuffix("-retrieval"), os.fspath(data_dir)))
    stored = None if task in ZERO_SHOT else stored_rows(Path(data_dir))
    return sort_samples(load(data_dir) if stored is None else load_stored(task.removesuffix("-retrieval"), stored))


def sort_samples(samples: Iterable[Sample]) -> list[Sample]:
    """The samples by id, numbers by value."""
    return sorted(samples, key=lambda sample: natural_key(sample.id))


def _loader(task: str) -> Loader:
    if task in ZERO_SHOT:
        return ZERO_SHOT[task]
    return find_loader(task_loader(task))
