"""Several models that one image is to fool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from PIL import Image

from lvlm_radapt.models.base import PixelBatch, PixelModel
from lvlm_radapt.utils.errors import UserError


class SeveralModels(PixelModel):
    """Surrogates for an attack that takes several; canvas and device are the first one's. UserError for one that comes
    twice."""

    def __init__(self, members: Sequence[PixelModel]) -> None:
        names = [member.label for member in members]
        if len(set(names)) < len(names):
            raise UserError(f"--surrogate names a model twice ({', '.join(names)}): keep one")
        first = members[0]
        self.hf, self.name = None, ",".join(names)
        self._members = tuple(members)
        self.geometry, self.image_backend, self.max_pixels = first.geometry, first.image_backend, first.max_pixels
        self.tower_name = self.revision = self.tuned_from = self.attached = None
        self.eot_draws = 1

    @property
    def members(self) -> tuple[PixelModel, ...]:
        return self._members

    @property
    def device(self) -> torch.device:
        return self._members[0].device

    @property
    def dtype(self) -> torch.dtype:
        return self._members[0].dtype

    @property
    def radapt(self) -> None:
        """None: surrogates have no defence."""

    def canvas(self, image: Image.Image) -> tuple[int, int]:
        return self._members[0].canvas(image)

    def pixels(self, images: Sequence[Image.Image]) -> PixelBatch:
        return self._members[0].pixels(images)

    def adopted(self, batch: PixelBatch) -> PixelBatch | None:
        return self._members[0].adopted(batch)

    def _apart(self, *args: Any, **more: Any) -> NoReturn:
        raise UserError(f"{self.name} are several models: ask each of its members")

    tower = property(_apart)
    tower_input = features = _canvas_bytes = _apart
