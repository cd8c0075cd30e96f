"""Which samples are evaluated, and in which pieces."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from eval_tasks.data.rows import RowImage
from eval_tasks.data.sample import Sample
from lvlm_radapt.utils.errors import UserError

T = TypeVar("T")


def select(samples: Sequence[Sample], n: int | None, seed: int = 42) -> tuple[list[Sample], str | None]:
    """`n` samples drawn without replacement (None: all), in the order given, and a note when there are fewer.

    The draw is numpy's legacy generator over the rows of the annotation file (`Sample.position`), FARE's
    protocol: on the original files, seed 42 and n = 500 give FARE's own subset. Raises UserError for n < 1,
    for a seed outside numpy's range and for an empty set.
    """
    if n is not None and n < 1:
        raise UserError(f"the number of samples must be at least 1, got {n}")
    if not 0 <= seed < 2**32:
        raise UserError(f"the seed must be between 0 and {2**32 - 1}, got {seed}")
    if not samples:
        raise UserError("there are no samples to select from")
    if n is None or n >= len(samples):
        note = None
        if n is not None and n > len(samples):
            note = f"{n} samples were asked for and the set has {len(samples)}: all of them are used"
        return list(samples), note
    rows = sorted(range(len(samples)), key=lambda index: samples[index].position)
    drawn = np.random.RandomState(seed).choice(len(samples), n, replace=False)
    return [samples[index] for index in sorted(rows[row] for row in drawn)], None


def chunks(ids: Sequence[T], size: int) -> list[list[T]]:
    """The ids in order, cut every `size`: the unit of work, a pure function of its two arguments. UserError for a
    `size` under 1."""
    if size < 1:
        raise UserError(f"the chunk size must be at least 1, got {size}")
    return [list(ids[start : start + size]) for start in range(0, len(ids), size)]


def ids_digest(ids: Iterable[str]) -> str:
    """SHA-256 of the ids in order: two runs saw the same samples when it is equal."""
    return hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()


def check_images(samples: Sequence[Sample]) -> None:
    """UserError naming and counting the images that are not there: asked before any model works."""
    images = {sample.image for sample in samples}
    missing = missing_images(samples)
    if missing:
        raise UserError(
            f"{len(missing)} of {len(images)} images are missing: {first_names(missing)}; put them there (eval can "
            "leave them out: --skip-missing)"
        )


def missing_images(samples: Sequence[Sample]) -> list[Path | RowImage]:
    """The images that are not there, each once, in the order of the samples. A folder or a pipe is no image."""
    return [image for image in dict.fromkeys(sample.image for sample in samples) if not image.is_file()]


def skip_missing(samples: Sequence[Sample]) -> tuple[list[Sample], str | None]:
    """The samples whose image is there, and a note that counts and names the others (None: there are none).

    They are left out of what was drawn, so the others are those of a whole data set. UserError when nothing is left.
    """
    missing = missing_images(samples)
    absent = set(missing)
    kept = [sample for sample in samples if sample.image not in absent]
    if not kept:
        raise UserError(f"all {len(missing)} images are missing: {first_names(missing)}; put them there")
    if not missing:
        return kept, None
    left = len(samples) - len(kept)
    return kept, f"{left} samples were left out (--skip-missing): {len(missing)} images missing: {first_names(missing)}"


def first_names(images: Sequence[Path | RowImage], most: int = 3) -> str:
    """The first few, and dots where there are more."""
    return ", ".join(str(image) for image in images[:most]) + (", ..." if len(images) > most else "")
