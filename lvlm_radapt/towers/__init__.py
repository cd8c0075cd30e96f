"""Vision encoders: an adapter a family, found from the transformers model that holds the encoder."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import TypeVar

from torch import nn

from lvlm_radapt.towers.base import Tower
from lvlm_radapt.towers.clip import CLIPTower
from lvlm_radapt.towers.qwen import ENCODERS, QwenTower
from lvlm_radapt.towers.siglip import SiglipTower
from lvlm_radapt.utils.errors import UserError

__all__ = ["CLIPTower", "QwenTower", "SiglipTower", "Tower", "find_tower"]

T = TypeVar("T")

# Where a model keeps its encoder. Class names, not classes: importing every modeling file would be slow, and
# subclasses (exported checkpoints) are met through their bases.
_INSIDE = {
    "LlavaForConditionalGeneration": "model.vision_tower",
    "LlavaModel": "vision_tower",
    "LlavaNextForConditionalGeneration": "model.vision_tower",
    "LlavaNextModel": "vision_tower",
    "LlavaOnevisionForConditionalGeneration": "model.vision_tower",
    "LlavaOnevisionModel": "vision_tower",
    "CLIPModel": "vision_model",
    "CLIPVisionModelWithProjection": "vision_model",
    "SiglipModel": "vision_model",
    "Qwen2VLForConditionalGeneration": "model.visual",
    "Qwen2VLModel": "visual",
    "Qwen2_5_VLForConditionalGeneration": "model.visual",
    "Qwen2_5_VLModel": "visual",
    "Qwen3VLForConditionalGeneration": "model.visual",
    "Qwen3VLModel": "visual",
}
_TOWERS: dict[str, type[Tower]] = {
    "CLIPVisionModel": CLIPTower,
    "CLIPVisionTransformer": CLIPTower,
    "SiglipVisionModel": SiglipTower,
    "SiglipVisionTransformer": SiglipTower,
    **dict.fromkeys(ENCODERS, QwenTower),
}


def find_tower(hf_model: nn.Module) -> Tower:
    """The adapter of the vision encoder in `hf_model`.

    Knows LLaVA-1.5, NeXT and OneVision (with a CLIP or SigLIP encoder), CLIP, SigLIP, Qwen2-VL, 2.5 and 3: the
    full models, the inner ones and the bare encoders, also through torch.compile's wrapper.

    Raises:
        UserError: the model, or the encoder inside it, is of another class.
    """
    hf_model = getattr(hf_model, "_orig_mod", hf_model)
    path = _lookup(_INSIDE, hf_model)
    encoder = hf_model if path is None else reduce(getattr, path.split("."), hf_model)
    tower = _lookup(_TOWERS, encoder)
    if tower is None:
        inside = "" if encoder is hf_model else f" in {type(hf_model).__name__}"
        raise UserError(
            f"no R-Adapt support for the vision encoder {type(encoder).__name__}{inside}: "
            f"supported are {', '.join([*_INSIDE, *_TOWERS])}; to add one see 'Add a family' in the README"
        )
    # transformers 4 wrapped CLIP's and SigLIP's encoder once more
    return tower(getattr(encoder, "vision_model", encoder))


def _lookup(table: Mapping[str, T], module: nn.Module) -> T | None:
    names = (cls.__name__ for cls in type(module).__mro__)
    return next((table[name] for name in names if name in table), None)
