"""Gemma 3: a SigLIP tower, its patches averaged down to 256 tokens, which attend to each other in both directions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from torch import Tensor, nn

from lvlm_radapt.models.base import LVLM, FeaturePoint, PixelBatch
from lvlm_radapt.models.family import Family
from lvlm_radapt.models.geometry import clip_canvas, eight_bit
from lvlm_radapt.models.language import text_positions
from lvlm_radapt.towers.siglip import SiglipTower
from lvlm_radapt.utils.errors import UserError


class SiglipLVLM(LVLM):
    """A language model over the last state of a SigLIP tower, each image on one canvas."""

    processing: ClassVar[dict[str, bool]] = {"do_convert_rgb": True}
    """What the family's processor fills in where released files leave it open."""

    @property
    def tower(self) -> nn.Module:
        return self.hf.model.vision_tower

    def canvas(self, image: Image.Image) -> tuple[int, int]:
        return clip_canvas(self.image_processor, image)

    def _canvas_bytes(self, image: Image.Image) -> np.ndarray:
        out = self.image_processor(
            images=[image], do_rescale=False, do_normalize=False, return_tensors="np", **self.processing
        )
        return eight_bit(out["pixel_values"][0])

    def tower_input(self, batch: PixelBatch) -> Tensor:
        """[B, 3, H, W], normalised; float32 even in half precision (the tower rounds after the filter)."""
        return self.normalise(batch.x)

    def features(self, batch: PixelBatch, at: FeaturePoint = "tower") -> Tensor:
        """`tower`: the tower's last state, one row a patch; `projector`: what the language model gets."""
        if at == "projector":
            return self.image_embeds(batch)
        if at != "tower":
            raise UserError(f"features at {at!r} are unknown, choose tower or projector")
        return self.run_tower(batch).last_hidden_state

    def image_embeds(self, batch: PixelBatch) -> Tensor:
        return self.hf.model.multi_modal_projector(self.run_tower(batch).last_hidden_state)

    def _positions(self, ids: Tensor, mask: Tensor, batch: PixelBatch) -> Tensor:
        return text_positions(mask)


class Gemma3LVLM(SiglipLVLM):
    """`Gemma3ForConditionalGeneration` behind the uniform interface: the whole image as one view.

    Pan and scan, which adds crops of a long image, stays off, as it is in the stock processor unless a call asks for
    it.
    """

    default_conversation: ClassVar[str] = "gemma"
    processing: ClassVar[dict[str, bool]] = {"do_convert_rgb": True, "do_pan_and_scan": False}

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

    def image_tokens(self, batch: PixelBatch) -> list[int]:
        return [int(self.hf.config.mm_tokens_per_image)] * len(batch)

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
