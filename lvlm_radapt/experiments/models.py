"""Models for the rows of an experiment: opened once, kept open, and defended in place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

from lvlm_radapt.defences.base import Defence
from lvlm_radapt.defences.radapt.anchor import Anchor
from lvlm_radapt.defences.radapt.config import RAdaptConfig
from lvlm_radapt.defences.radapt.hooks import remove
from lvlm_radapt.loading.load import is_encoder, load_any
from lvlm_radapt.models.base import PixelModel
from lvlm_radapt.models.robustify import robustify


class ModelFactory:
    """Opens models by name, all in one place and precision. settings: keywords of `load_any`."""

    def __init__(self, **settings: Any) -> None:
        self._settings = settings
        self._kept: dict[tuple[int, str], PixelModel] = {}

    def open(self, name: str, tower: str | None = None) -> PixelModel:
        """A model of the caller's own. Of an encoder's name the `tower` is the whole model."""
        if tower is not None and is_encoder(name):
            name, tower = tower, None
        return load_any(name, **self._settings | ({} if tower is None else {"tower": tower}))

    def kept(self, name: str) -> PixelModel:
        """A model that stays open and is the same at every call. Each thread has its own."""
        key = get_ident(), name
        if key not in self._kept:
            self._kept[key] = self.open(name)
        return self._kept[key]


@contextmanager
def defended(model: PixelModel, config: RAdaptConfig, anchor: Anchor | None = None) -> Iterator[PixelModel]:
    """Inside, the model has that defence; then it is as before. UserError as for `robustify`."""
    robustify(model, config, anchor)
    try:
        yield model
    finally:
        remove(model.hf)


@contextmanager
def attached(model: PixelModel, defence: Defence) -> Iterator[PixelModel]:
    """Inside, the model has that defence around it; then it is as before. UserError as for `Defence.attach`."""
    defence.attach(model)
    try:
        yield model
    finally:
        defence.detach(model)
