"""LLaVA-OneVision: LLaVA-NeXT's views, a SigLIP tower, and a limit on how many tokens the crops may take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from lvlm_radapt.models.conversations import CONVERSATIONS, Conversation
from lvlm_radapt.models.family import Family
from lvlm_radapt.models.llava import PLAIN_LAYERS, UNQUANTISED
from lvlm_radapt.models.llava_next import LlavaNextLVLM
from lvlm_radapt.towers.clip import CLIPTower
from lvlm_radapt.towers.siglip import SiglipTower


class LlavaOnevisionLVLM(LlavaNextLVLM):
    """`LlavaOnevisionForConditionalGeneration` behind the uniform interface, one image a question."""

    default_conversation: ClassVar[Conversation] = CONVERSATIONS["chatml"]

    def _pack(self, views: Tensor, sizes: Sequence[tuple[int, int]], newline: Tensor) -> list[Tensor]:
        """As LLaVA-NeXT does, but crops beyond the area that `vision_aspect_ratio` allows are shrunk to it."""
        packed, _ = self.hf.model.pack_image_features(
            views, sizes, image_newline=newline, vision_aspect_ratio=self.hf.config.vision_aspect_ratio
        )
        return packed


FAMILY = Family(
    checkpoints={"llava_onevision": ("LlavaOnevisionForConditionalGeneration",)},
    lvlm=LlavaOnevisionLVLM,
    towers=(CLIPTower, SiglipTower),
    image_processors=("LlavaOnevisionImageProcessor",),
    plain_layers=PLAIN_LAYERS,
    unquantised=UNQUANTISED,
)
