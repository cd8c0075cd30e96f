"""The defence for a model behind the uniform interface."""

from __future__ import annotations

from typing import TypeVar

from lvlm_radapt.defences.radapt.anchor import Anchor
from lvlm_radapt.defences.radapt.config import RAdaptConfig
from lvlm_radapt.defences.radapt.defence import RAdapt
from lvlm_radapt.models.base import PixelModel

Model = TypeVar("Model", bound=PixelModel)


def robustify(model: Model, config: RAdaptConfig | None = None, anchor: Anchor | None = None) -> Model:
    """The same model, changed in place: filter and anchor in its vision tower, every weight as it was.

    config: `RAdaptConfig()` by default.
    anchor: the one to mix in, `lvlm_radapt.loading.guides.guided_anchor`'s or that of
        `lvlm_radapt.training.learned_anchor.learn_anchor`; None for the white one, which is taken with the model's
        own pixel normalisation.

    UserError as for `inject`.
    """
    config = RAdaptConfig() if config is None else config
    RAdapt(**config.to_dict()).attach(model, anchor)
    return model
