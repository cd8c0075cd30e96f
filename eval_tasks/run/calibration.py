"""Which images a defence's settings were chosen on: no test of it may be on those.

`tune` keeps a `Calibration`, `robustify --tuned` puts it beside the adapter it writes, and every evaluation of that
folder says how many of its images are among them. Ids do not tell: scenes are numbered from 1 in every folder. So
images are known by their pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from eval_tasks.data import Sample, open_image
from eval_tasks.data.rows import RowImage
from eval_tasks.run.records import ids_digest
from lvlm_radapt.utils.json_files import read_own

FILE = "calibration.json"
FORMAT: Literal["lvlm-radapt calibration"] = "lvlm-radapt calibration"
VERSION: Literal[1] = 1


class Calibration(BaseModel):
    """task, data: where the samples are from; ids: SHA-256 of their ids in order; images: what `image_digest` says of
    each of their images, sorted."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    format: Literal["lvlm-radapt calibration"] = FORMAT
    version: Literal[1] = VERSION
    task: str
    data: str
    n: Annotated[int, Field(ge=1)]
    ids: str
    images: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]

    def note(self, samples: Sequence[Sample]) -> str | None:
        """What a reader of scores on these samples has to know; None where no image is among the calibration's."""
        known = set(self.images)
        shared = sum(image_digest(sample.image) in known for sample in samples)
        if not shared:
            return None
        return (
            f"calibrated on these samples: {shared} of {len(samples)} show images that the defence's settings were "
            f"chosen on ({self.task}, {self.data}), so this is no test of it; evaluate on other images"
        )


def calibration_on(samples: Sequence[Sample], *, task: str, data: Path) -> Calibration:
    """The calibration on these samples. UserError for an image that cannot be read."""
    images = dict.fromkeys(sample.image for sample in samples)
    return Calibration(
        task=task,
        data=str(data),
        n=len(samples),
        ids=ids_digest(sample.id for sample in samples),
        images=tuple(sorted(map(image_digest, images))),
    )


def image_digest(image: Path | RowImage) -> str:
    """16 hexadecimal digits that stand for the image's size and pixels, whatever file they are in."""
    pixels = open_image(image)
    return hashlib.sha256(f"{pixels.size}".encode() + pixels.tobytes()).hexdigest()[:16]


def calibration_note(calibration: Calibration | None) -> dict[str, str]:
    """The file to lay into a model's folder, as its name and text; none where there is no calibration."""
    return {} if calibration is None else {FILE: calibration.model_dump_json(indent=1) + "\n"}


def read_calibration(model: str | Path) -> Calibration | None:
    """The one that lies in that model's folder; None where there is none. UserError for a damaged one."""
    path = Path(model).expanduser() / FILE
    return read_own(Calibration, path, format=FORMAT, version=VERSION) if path.is_file() else None
