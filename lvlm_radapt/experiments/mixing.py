"""A model whose tower is partly its own and partly its robust twin's, and back again to the bit."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from lvlm_radapt.loading.load import is_robustified, load_any
from lvlm_radapt.models.base import PixelModel
from lvlm_radapt.towers import find_tower
from lvlm_radapt.towers.parts import ATTENTION, EMBEDDING, HEAD, replace_parts, tower_parts
from lvlm_radapt.utils.errors import UserError


class Step(NamedTuple):
    """A stage of progressive replacement: its name, and all parts that come from the guide by then."""

    name: str
    parts: tuple[str, ...]


def open_guide(name: str | os.PathLike[str], model: PixelModel) -> PixelModel:
    """The robust twin of that name, whole (a CLIP's projection is part of it), on the model's device in its dtype.

    UserError for one with R-Adapt in it, and as for `load_any`.
    """
    if is_robustified(name):
        raise UserError(
            f"{os.fspath(name)} has R-Adapt in it and is no guide: name an adversarially fine-tuned encoder"
        )
    return load_any(name, device=model.device, dtype=model.dtype)


class Mixed:
    """`model`, changed in place by `take`, and the guide its parts come from.

    original: the model as it was, for naming: it shares the weights, so it is itself only after `take(())`.
    notes: in what the fully replaced model is not the guide to the bit.

    UserError where the guide's parts do not fit the model's tower (see `parts.replace_parts`).
    """

    def __init__(self, model: PixelModel, guide: PixelModel) -> None:
        self.model, self.guide = model, guide
        self.original = copy.copy(model)
        self.tower, self._guide_tower = find_tower(model.hf), find_tower(guide.hf)
        self.parts = tuple(tower_parts(self.tower))
        self._own = {name: value.detach().clone() for name, value in self._weights().items()}
        self._projection = _same_projection(model, guide)
        self.notes = _differences(model, guide)
        try:
            self.take(self.parts)  # what does not fit is told before any work
        except UserError as error:
            raise UserError(f"{guide.name} is no robust twin of {model.name}: {error}") from error
        self.take(())

    def steps(self) -> list[Step]:
        """original, embedding, attention1, block1, block2, ..., full: each has the parts before it, too."""
        done: list[str] = []
        steps = [Step("original", ())]
        for part in self.parts:
            done.append(part)
            steps.append(Step("full" if part == HEAD else part, tuple(done)))
        return steps

    def take(self, parts: Sequence[str]) -> PixelModel:
        """The model with these parts from the guide and all others its own.

        With all of them a CLIP's projection comes along, which the guide's training changed, too: the model is the
        guide then. Its label says what is in it.
        """
        with torch.no_grad():
            for name, weight in self._weights().items():
                weight.copy_(self._own[name])
            if parts:
                replace_parts(self.tower, self._guide_tower, parts)
            if self._projection is not None and set(parts) == set(self.parts):
                self.model.hf.visual_projection.weight.copy_(self._projection)
        if not parts:
            self.model.tower_name = self.original.tower_name
        elif set(parts) == set(self.parts):
            self.model.tower_name = f"of {self.guide.name}"
        else:
            shown = [part for part in parts if part != ATTENTION or "block1" not in parts]
            self.model.tower_name = f"mixed: {' + '.join(shown)} of {self.guide.name}"
        return self.model

    def _weights(self) -> dict[str, torch.Tensor]:
        weights: dict[str, torch.Tensor] = dict(self.tower.module.named_parameters())
        projection = getattr(self.model.hf, "visual_projection", None)
        return weights if projection is None else weights | {"visual_projection": projection.weight}


def _same_projection(model: PixelModel, guide: PixelModel) -> torch.Tensor | None:
    """The guide's projection into the space of texts, where both have one of the same shape."""
    mine, theirs = (getattr(one.hf, "visual_projection", None) for one in (model, guide))
    if mine is None or theirs is None or mine.weight.shape != theirs.weight.shape:
        return None
    return theirs.weight.detach()


def _differences(model: PixelModel, guide: PixelModel) -> list[str]:
    notes = []
    ours: Any = find_tower(model.hf).module.config
    its: Any = find_tower(guide.hf).module.config
    side, other = getattr(ours, "image_size", None), getattr(its, "image_size", None)
    if side != other:
        notes.append(f"the guide's {EMBEDDING} is made for {other} px: its positions are interpolated to {side} px")
    if (model.image_mean, model.image_std) != (guide.image_mean, guide.image_std):
        notes.append("the guide was trained with another normalisation of pixels than the model's, which is used here")
    return notes
