"""Test-time defences that change the image by gradient steps on the victim's own encoder.

The steps take signs of gradients, whose derivative is zero: attacks go straight through (BPDA).
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from lvlm_radapt.defences.base import Defence, Gradient
from lvlm_radapt.utils.errors import UserError

if TYPE_CHECKING:
    from lvlm_radapt.models.base import PixelModel

Embed = Callable[[Tensor], Tensor]
"""float32 [B, 3, H, W] in [0, 1] -> [B, D], differentiable."""


@dataclass(frozen=True)
class EncoderSteps(Defence):
    """Base of both. A subclass overrides `changed`."""

    gradient: ClassVar[Gradient] = "bpda"

    _embed: dict[str, Embed] = field(default_factory=dict, init=False, repr=False, compare=False)

    @abstractmethod
    def changed(self, x: Tensor, seeds: Sequence[int], embed: Embed) -> Tensor:
        """The images that the tower gets in place of x. x and seeds as for `Defence.pixels`; embed: the image
        embedding of a CLIP, else the mean of the tower's patch tokens. Called with gradients enabled."""

    def pixels(self, x: Tensor, seeds: Sequence[int]) -> Tensor:
        if not self._embed:
            raise UserError(f"defence {self.name} needs the encoder of a model: attach it first")
        with torch.inference_mode(False), torch.enable_grad():  # answers are generated without gradients
            return self.changed(x.detach().clone(), seeds, self._embed["of"]).detach()

    def put_in(self, model: PixelModel) -> None:
        """Note the model's encoder, which stays as it is. UserError for a model that cuts images into views,
        and where the defence is in another model."""
        if self._embed:
            raise UserError(f"this defence {self.name} is in another model: make a second one for {model.name}")
        if model.views_apart:
            raise UserError(
                f"{model.name} cuts an image into views, and defence {self.name} needs the embedding of a whole image"
            )
        self._embed["of"] = _embedding(model)

    def take_out(self, model: PixelModel) -> None:
        self._embed.clear()

    def to_dict(self) -> dict[str, Any]:
        return {key: value for key, value in super().to_dict().items() if key != "_embed"}


def _embedding(model: PixelModel) -> Embed:
    bare = copy.copy(model)  # the same network, without the defence around it
    bare.attached = None

    return lambda x: bare.embedding(bare.on_canvas(x)).float()


def stepped(x: Tensor, delta: Tensor, gradient: Tensor, step: float, eps: float) -> Tensor:
    """delta after a step of size `step` along the gradient's signs: in the box of `eps`, and x + delta in [0, 1]."""
    moved = (delta + step * gradient.sign()).clamp(-eps, eps)
    return (x + moved).clamp(0, 1) - x


def check_settings(**settings: tuple[object, type | tuple[type, ...], float, float]) -> None:
    """UserError for a setting that is not of its type, or not from its least to its most. Given as name = (value,
    type, least, most)."""
    for name, (value, kind, least, most) in settings.items():
        if not isinstance(value, kind) or isinstance(value, bool) or not least <= float(value) <= most:  # type: ignore[arg-type]
            raise UserError(f"{name} is {value!r}: give a number from {least:g} to {most:g}")
