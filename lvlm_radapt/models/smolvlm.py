"""SmolVLM and SmolVLM2: Idefics3 under other names."""

from __future__ import annotations

from lvlm_radapt.models.family import Family
from lvlm_radapt.models.idefics3 import FAMILY as IDEFICS3
from lvlm_radapt.models.idefics3 import SmolVLMLVLM

FAMILY = Family(
    checkpoints={"smolvlm": ("SmolVLMForConditionalGeneration",)},
    lvlm=SmolVLMLVLM,
    towers=IDEFICS3.towers,
    image_processors=("SmolVLMImageProcessor",),
    plain_layers=IDEFICS3.plain_layers,
    unquantised=IDEFICS3.unquantised,
)
