"""Gemma 3: a SigLIP tower, its patches averaged down to 256 tokens, which attend to each other in both directions."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from torch import Tensor

from lvlm_radapt.models.base import PixelBatch
from lvlm_radapt.models.conversations import CONVERSATIONS, Conversation
from lvlm_radapt.models.family import Family
from lvlm_radapt.models.siglip_lvlm import SiglipLVLM
from lvlm_radapt.towers.siglip import SiglipTower


class Gemma3LVLM(SiglipLVLM):
    """`Gemma3ForConditionalGeneration` behind the uniform interface: the whole image as one view.

    Pan and scan, which adds crops of a long image, stays off, as it is in the stock processor unless a call asks for
    it.
    """

    default_conversation: ClassVar[Conversation] = CONVERSATIONS["gemma"]
    processing = MappingProxyType({"do_convert_rgb": True, "do_pan_and_scan": False})

    @classmethod
    def image_mark(cls, config: Any, tokenizer: Any) -> str:
        return tokenizer.convert_ids_to_tokens(config.boi_token_index)

    def image_text(self, meta: Mapping[str, Any]) -> str:
        config, token = self.hf.config, self.tokenizer.convert_ids_to_tokens
        opening, image, closing = map(token, (config.boi_token_index, config.image_token_id, config.eoi_token_index))
        return f"\n\n{opening}{image}{closing}\n\n"

    def _reserved_ids(self) -> list[int]:
        return [self.hf.config.eoi_token_index]

    def _end_id(self) -> int:
        return int(self.tokenizer.convert_tokens_to_ids("<end_of_turn>"))

    @property
    def image_run(self) -> int:
        return int(self.hf.config.mm_tokens_per_image)

    def image_tokens(self, batch: PixelBatch) -> list[int]:
        return [self.image_run] * len(batch)

    def _attention(
        self, ids: Tensor, mask: Tensor, prompt: Tensor, embeds: Tensor, positions: Tensor
    ) -> dict[str, Any]:
        # without the token types transformers would let the image's tokens look back alone, silently
        types = (ids == self.text.image_id).int()
        make = self.hf.create_masks_for_generate
        return {"attention_mask": make(self.hf.config, embeds, mask, None, positions, token_type_ids=types)}


UNQUANTISED = ("model.vision_tower", "model.multi_modal_projector", "lm_head")

FAMILY = Family(
    checkpoints={"gemma3": ("Gemma3ForConditionalGeneration",)},
    lvlm=Gemma3LVLM,
    towers=(SiglipTower,),
    image_processors=("Gemma3ImageProcessor",),
    unquantised=UNQUANTISED,
)
