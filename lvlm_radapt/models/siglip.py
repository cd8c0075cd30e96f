"""A SigLIP image-text encoder behind the pixel interface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from lvlm_radapt.models.base import PixelBatch
from lvlm_radapt.models.clip import CLIPEncoder
from lvlm_radapt.models.family import Family
from lvlm_radapt.towers.siglip import SiglipTower
from lvlm_radapt.utils.errors import UserError


class SiglipEncoder(CLIPEncoder):
    """`SiglipModel`, or a bare `SiglipVisionModel`: no CLS token, images pooled by attention, no projections."""

    prefix_tokens: ClassVar[int] = 0

    @property
    def embeds_images(self) -> bool:
        tower: Any = self.tower
        return bool(tower.use_head)

    def image_features(self, batch: PixelBatch) -> Tensor:
        """[B, P] pooled image embeddings, not scaled to unit length; differentiable in `batch.x`.

        UserError for a vision tower that comes without its pooling head (LLaVA-OneVision's).
        """
        pooled = self.tower(self.pixel_values(batch)).pooler_output
        if pooled is None:
            raise UserError(f"{self.name}: this tower has no pooling head, so it has features but no image embedding")
        return pooled

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """[N, P] pooled text embeddings, not scaled to unit length; UserError for a bare vision tower.

        Every text is padded to the full length and the padding attended to, as in SigLIP's training.
        """
        self._need_text()
        length = self.hf.config.text_config.max_position_embeddings
        tokens = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        return self.hf.text_model(input_ids=tokens["input_ids"].to(self.device)).pooler_output


FAMILY = Family(
    checkpoints={"siglip": ("SiglipModel",), "siglip_vision_model": ("SiglipVisionModel",)},
    encoder=SiglipEncoder,
    towers=(SiglipTower,),
    image_processors=("SiglipImageProcessor",),
)
