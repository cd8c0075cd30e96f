"""Aya Vision: a SigLIP tower on crops of an image, patches shuffled together, a Cohere language model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from lvlm_radapt.models.base import PixelBatch
from lvlm_radapt.models.conversations import Conversation
from lvlm_radapt.models.family import Family
from lvlm_radapt.models.internvl import InternVLLVLM
from lvlm_radapt.models.llava import UNQUANTISED, LlavaLVLM
from lvlm_radapt.models.speedups import hidden_states
from lvlm_radapt.towers.siglip import SiglipTower
from lvlm_radapt.utils.errors import UserError

_TURN = "{text}<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"
_USER = "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>"


class AyaVisionLVLM(InternVLLVLM):
    """`AyaVisionForConditionalGeneration` behind the uniform interface.

    Images are cut as InternVL's are. The text names each crop.
    """

    default_conversation: ClassVar[Conversation] = Conversation(
        "aya_vision", None, f"{_USER}<image>{_TURN}", f"{{answer}}<|END_OF_TURN_TOKEN|>{_USER}{_TURN}"
    )

    def __init__(self, hf: Any, tokenizer: Any, image_processor: Any, **settings: Any) -> None:
        super().__init__(hf, tokenizer, image_processor, **settings)
        hidden_states.prepare(self.tower)

    @classmethod
    def check_config(cls, config: Any, name: str) -> None:
        """UserError where config.json has a hidden layer of the tower read that is not there, or one without CLS."""
        LlavaLVLM.check_config(config, name)
        if config.vision_feature_select_strategy != "full":
            raise UserError(f"{name}: vision_feature_select_strategy must be full: a SigLIP tower has no CLS token")

    @classmethod
    def image_mark(cls, config: Any, tokenizer: Any) -> str:
        return "<image>"

    def image_text(self, meta: Mapping[str, Any]) -> str:
        (opening, closing), (high, wide) = self._around(), meta.get("crops", (0, 0))
        names = [*(f"TILE_{number + 1}" for number in range(high * wide)), "TILE_GLOBAL"]
        image = self.tokenizer.convert_ids_to_tokens(self.hf.config.image_token_id)
        return opening + "".join(f"{name}{image}" for name in names) + closing

    def _around(self) -> tuple[str, str]:
        return "<|START_OF_IMG|>", "<|END_OF_IMG|>"

    @property
    def image_run(self) -> int:
        return (self._side // self.hf.config.vision_config.patch_size // self.hf.config.downsample_factor) ** 2

    def processor_values(self) -> dict[str, Any]:
        config = self.hf.config
        patch_size = config.vision_config.patch_size * config.downsample_factor
        return super().processor_values() | {"patch_size": patch_size, "img_size": self._side}

    def patch_states(self, batch: PixelBatch) -> Tensor:
        layers = self.hf.config.vision_feature_layer
        views = self.pixel_values(batch)
        return torch.cat(hidden_states.read(self.tower, views, [layers] if isinstance(layers, int) else layers), dim=-1)

    def project(self, states: Tensor, batch: PixelBatch) -> Tensor:
        return self.hf.model.multi_modal_projector(states).flatten(1, 2)


FAMILY = Family(
    checkpoints={"aya_vision": ("AyaVisionForConditionalGeneration",)},
    lvlm=AyaVisionLVLM,
    towers=(SiglipTower,),
    image_processors=("GotOcr2ImageProcessor",),
    unquantised=UNQUANTISED,
)
