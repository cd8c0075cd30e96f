"""R-Adapt as a defence among others. Its state is the tower's hooks, so that `inject` and `attach` are one thing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lvlm_radapt.defences.base import Defence
from lvlm_radapt.defences.radapt.anchor import Anchor
from lvlm_radapt.defences.radapt.config import RAdaptConfig
from lvlm_radapt.defences.radapt.hooks import disabled, inject, is_injected, remove
from lvlm_radapt.towers.base import normalised_white
from lvlm_radapt.utils.errors import UserError

if TYPE_CHECKING:
    from lvlm_radapt.models.base import PixelModel


@dataclass(frozen=True)
class RAdapt(RAdaptConfig, Defence):
    """The input filter and the anchor of R-Adapt (arXiv 2603.12799), with the settings of `RAdaptConfig`."""

    name: ClassVar[str] = "radapt"

    @property
    def config(self) -> RAdaptConfig:
        """The settings alone."""
        return RAdaptConfig(**self.to_dict())

    def attach(self, model: PixelModel, anchor: Anchor | None = None) -> None:
        """Put filter and anchor into the tower. anchor: the one to mix in; None takes the white one from the encoder,
        with the model's own pixel normalisation. UserError as for `inject`, and where there is a defence already."""
        if not is_injected(model.hf):  # which `inject` refuses in its own words
            self.check_free(model)
        white = normalised_white(model.image_mean, model.image_std)
        inject(model.hf, self.config, anchor, white=white)

    def detach(self, model: PixelModel) -> None:
        """Take filter and anchor out of the tower. UserError where they are not in."""
        if model.radapt != self.config:
            raise UserError(f"{model.name} does not have R-Adapt with these settings: there is nothing to detach")
        remove(model.hf)

    @contextmanager
    def taken_out(self, model: PixelModel) -> Iterator[None]:
        """Inside, the hooks do nothing. The anchor is kept."""
        with disabled(model.hf):
            yield

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> RAdapt:
        """As `RAdaptConfig.from_dict`."""
        return cls(**RAdaptConfig.from_dict(settings).to_dict())
