"""The defence for a model behind the uniform interface."""

from __future__ import annotations

from typing import TypeVar

from lvlm_radapt.anchor import white_anchor
from lvlm_radapt.config import RAdaptConfig
from lvlm_radapt.inject import inject
from lvlm_radapt.models.base import PixelModel

Model = TypeVar("Model", bound=PixelModel)


def robustify(model: Model, config: RAdaptConfig | None = None) -> Model:
    """The same model, changed in place: filter and anchor in its vision tower, every weight as it was.

    The white anchor is taken with the model's own pixel normalisation. config: `RAdaptConfig()` by default.
    """
    config = RAdaptConfig() if config is None else config
    needed = config.alpha != 0
    anchor = white_anchor(model.hf, model.image_mean, model.image_std) if needed else None
    inject(model.hf, config, anchor)
    return model
