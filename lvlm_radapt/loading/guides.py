"""A guide: an adversarially fine-tuned twin of a model's vision tower, and the anchor that comes from it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from lvlm_radapt.defences.radapt.anchor import Anchor, white_anchor
from lvlm_radapt.loading.load import is_encoder, is_robustified, load_any
from lvlm_radapt.loading.locate import embedded_models
from lvlm_radapt.models.base import PixelModel
from lvlm_radapt.towers import Tower, find_tower
from lvlm_radapt.towers.base import AnyGridTower
from lvlm_radapt.towers.fingerprint import tower_fingerprints
from lvlm_radapt.utils.errors import UserError


def load_guide(name: str | os.PathLike[str], for_model: PixelModel) -> Tower:
    """The tower of an undefended guide, opened on the CPU in float32, with its checkpoint's own normalisation.

    name: what `load_any` opens: an embedded name, an open_clip, FARE or TeCoA file, a folder or hub id of an image
        encoder, or, for models whose tower is no CLIP or SigLIP (Qwen), of a whole model with a robust twin of it.

    UserError, one line, when it cannot be opened, has R-Adapt in it, or its tower is of another family, width or
    number of heads than `for_model`'s.
    """
    shown = os.fspath(name)
    if is_robustified(name):
        raise UserError(f"{shown} has R-Adapt in it and is no guide: name an adversarially fine-tuned encoder")
    # an encoder is small; of a whole model only the tower is widened
    dtype = torch.float32 if is_encoder(name) else for_model.dtype
    guide = load_any(name, dtype=dtype)
    ours, theirs = find_tower(for_model.hf), find_tower(guide.hf)
    theirs.module.float()
    theirs.image_mean, theirs.image_std = guide.image_mean, guide.image_std
    for what, of in (("kind", _kind), ("width", _width), ("number of heads", _heads)):
        mine, its = of(ours), of(theirs)
        if mine != its:
            raise UserError(
                f"{shown} is no guide for {for_model.name}: the {what} of its tower is {its}, of the model's {mine}: "
                "take a robust twin of the model's own tower"
            )
    return theirs


def guided_anchor(guide: Tower, model: PixelModel) -> Anchor:
    """The model-guided anchor (R-Adapt_M): the guide's first attention output on a white image.

    A fixed-size tower gets it on its own grid, a guide's of another one (224 px for 336) interpolated; a Qwen tower
    the guide's one vector (Qwen2-VL, 2.5), or the rows of the guide's usual grid (Qwen3-VL), which are interpolated to
    each image's: the guide is not there to be asked then.
    """
    anchor = white_anchor(guide, guide.image_mean, guide.image_std)
    tower = find_tower(model.hf)
    return anchor if isinstance(tower, AnyGridTower) else anchor.resized(usual_grid(tower))


def usual_grid(tower: Tower) -> tuple[int, int]:
    """(high, wide) in patches of the image that the tower is made for."""
    return tower.grid(*tower.uniform_input(torch.zeros(3)))


def guide_origin(name: str | os.PathLike[str], guide: Tower) -> str:
    """What tells this guide from others, whatever its place on the disk: its name, and its weights' fingerprint."""
    shown = os.fspath(name)
    if shown not in embedded_models() and Path(shown).expanduser().exists():
        shown = Path(shown).expanduser().resolve().name
    return f"{shown} ({tower_fingerprints(guide.module, ['float32'])['float32'][:8]})"


def _kind(tower: Tower) -> str:
    """The family; of Qwen, whose generations differ, the class."""
    return type(tower.module).__name__ if isinstance(tower, AnyGridTower) else tower.family


def _width(tower: Tower) -> int:
    return tower.width


def _heads(tower: Tower) -> int:
    config: Any = tower.module.config
    return int(getattr(config, "num_attention_heads", None) or config.num_heads)
