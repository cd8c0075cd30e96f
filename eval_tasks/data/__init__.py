"""Data sets as their authors store them, read into `Sample`s."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from eval_tasks.config.validation import unknown_name
from eval_tasks.data.coco import COCO_LAYOUT, FLICKR_LAYOUT, load_coco, load_flickr30k
from eval_tasks.data.imagefolder import IMAGEFOLDER_LAYOUT, load_imagefolder
from eval_tasks.data.okvqa import OKVQA_LAYOUT, load_okvqa
from eval_tasks.data.pope import POPE_LAYOUT, load_pope
from eval_tasks.data.sample import Sample, natural_key
from eval_tasks.data.scienceqa import SCIENCEQA_LAYOUT, load_scienceqa
from eval_tasks.data.selection import check_images, chunks, select, skip_missing
from eval_tasks.data.stored import load_stored, stored_rows
from eval_tasks.data.textvqa import TEXTVQA_LAYOUT, load_textvqa
from eval_tasks.data.vizwiz import VIZWIZ_LAYOUT, load_vizwiz
from eval_tasks.data.vqav2 import VQAV2_LAYOUT, load_vqav2
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
    "tasks",
]

_LOADERS: dict[str, tuple[Callable[[str | os.PathLike[str]], list[Sample]], str]] = {
    "coco": (load_coco, COCO_LAYOUT),
    "flickr30k": (load_flickr30k, FLICKR_LAYOUT),
    "vqav2": (load_vqav2, VQAV2_LAYOUT),
    "textvqa": (load_textvqa, TEXTVQA_LAYOUT),
    "okvqa": (load_okvqa, OKVQA_LAYOUT),
    "vizwiz": (load_vizwiz, VIZWIZ_LAYOUT),
    "pope": (load_pope, POPE_LAYOUT),
    "scienceqa": (load_scienceqa, SCIENCEQA_LAYOUT),
    "imagefolder": (load_imagefolder, IMAGEFOLDER_LAYOUT),
    "coco-retrieval": (load_coco, COCO_LAYOUT),
    "flickr30k-retrieval": (load_flickr30k, FLICKR_LAYOUT),
    **ZERO_SHOT,
}


def tasks() -> dict[str, TaskConfig]:
    """Every task by name, with its description and type."""
    from eval_tasks.config.presets import load_task_config  # brings torch, which data sets do without

    return {name: load_task_config(name) for name in _LOADERS}


def layout(task: str) -> str:
    """The files the task wants in its data folder, on one line."""
    return _entry(task)[1]


def load_task(task: str, data_dir: str | os.PathLike[str]) -> list[Sample]:
    """All samples of a task, sorted by id (numbers by value). Whether the images are there is not asked here:
    `check_images` does that for the selected ones.

    Raises UserError (one line) for an unknown task or a data folder that is missing, incomplete or wrong.
    """
    load, _ = _entry(task)
    stored = None if task in ZERO_SHOT else stored_rows(Path(data_dir))
    samples = load(data_dir) if stored is None else load_stored(task.removesuffix("-retrieval"), stored)
    return sorted(samples, key=lambda sample: natural_key(sample.id))


def _entry(task: str) -> tuple[Callable[[str | os.PathLike[str]], list[Sample]], str]:
    if task not in _LOADERS:
        raise unknown_name("task", task, _LOADERS)
    return _LOADERS[task]
