"""PaliGemma: a SigLIP tower, every patch a token; image and question attend to each other in both directions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from lvlm_radapt.models.base import PixelBatch
from lvlm_radapt.models.conversations import CONVERSATIONS, Conversation
from lvlm_radapt.models.family import Family
from lvlm_radapt.models.gemma3 import UNQUANTISED
from lvlm_radapt.models.siglip_lvlm import SiglipLVLM
from lvlm_radapt.towers.siglip import SiglipTower


class PaliGemmaLVLM(SiglipLVLM):
    """`PaliGemmaForConditionalGeneration` behind the uniform interface.

    Image, opening token, question and a line's end are the prefix, of which every token sees every other; the answer is
    the suffix, which looks back alone. Released checkpoints have no chat template.
    """

    default_conversation: ClassVar[Conversation] = CONVERSATIONS["paligemma"]
    prompt_end: ClassVar[str] = "\n"

    def __init__(self, hf: Any, tokenizer: Any, image_processor: Any, **settings: Any) -> None:
        super().__init__(hf, tokenizer, image_processor, **settings)
        if getattr(hf.config.text_config, "attn_logit_softcapping", None) is not None:
            # sdpa leaves the bound out, in versions that open it so without a word
            self.language_model.set_attn_implementation("eager")

    def image_text(self, meta: Mapping[str, Any]) -> str:
        return self.image_mark(self.hf.config, self.tokenizer) + self.tokenizer.bos_token

    def image_tokens(self, batch: PixelBatch) -> list[int]:
        vision = self.hf.config.vision_config
        return [(vision.image_size // vision.patch_size) ** 2] * len(batch)

    def _positions(self, ids: Tensor, mask: Tensor, batch: PixelBatch) -> Tensor:
        return super()._positions(ids, mask, batch) + 1  # this family counts from 1

    def _attention(
        self, ids: Tensor, mask: Tensor, prompt: Tensor, embeds: Tensor, positions: Tensor
    ) -> dict[str, Any]:
        types = (~prompt).int()
        make = self.hf.create_masks_for_generate
        return {"attention_mask": make(self.hf.config, embeds, mask, None, positions, token_type_ids=types)}


FAMILY = Family(
    checkpoints={"paligemma": ("PaliGemmaForConditionalGeneration",)},
    lvlm=PaliGemmaLVLM,
    towers=(SiglipTower,),
    image_processors=("SiglipImageProcessor",),
    plain_layers=("GemmaDecoderLayer",),
    unquantised=UNQUANTISED,
)
