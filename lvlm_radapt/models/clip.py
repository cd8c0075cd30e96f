"""A CLIP image-text encoder behind the pixel interface: transfer surrogate, guide, zero-shot classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from lvlm_radapt.models.base import FeaturePoint, Geometry, PixelBatch, PixelModel
from lvlm_radapt.models.family import Family
from lvlm_radapt.models.geometry import clip_canvas, clip_canvas_bytes, pad_to_square
from lvlm_radapt.models.speedups import hidden_states
from lvlm_radapt.towers.clip import CLIPTower
from lvlm_radapt.utils.errors import UserError


class CLIPEncoder(PixelModel):
    """`CLIPModel`: pixels, patch features, and the two projected embeddings; or a bare `CLIPVisionModel`, which
    has features alone.

    feature_layer: the hidden layer that `features` reads; -2 as LLaVA does.
    """

    prefix_tokens: ClassVar[int] = 1
    """Tokens before the patches."""

    def __init__(
        self,
        hf: Any,
        tokenizer: Any,
        image_processor: Any,
        *,
        name: str,
        geometry: Geometry = "stock",
        feature_layer: int = -2,
    ) -> None:
        super().__init__(hf, tokenizer, image_processor, name=name, geometry=geometry)
        self.feature_layer = feature_layer
        hidden_states.prepare(self.tower)

    @property
    def tower(self) -> nn.Module:
        return getattr(self.hf, "vision_model", self.hf)

    def canvas(self, image: Image.Image) -> tuple[int, int]:
        return clip_canvas(self.image_processor, image, square=self.geometry == "pad")

    def _canvas_bytes(self, image: Image.Image) -> np.ndarray:
        if self.geometry == "pad":
            image = pad_to_square(image, self.image_mean)
        return clip_canvas_bytes(self.image_processor, image)

    def tower_input(self, batch: PixelBatch) -> Tensor:
        """[B, 3, H, W], normalised."""
        return self.normalise(batch.x)

    def features(self, batch: PixelBatch, at: FeaturePoint = "tower") -> Tensor:
        """[B, T, D] patch tokens of `feature_layer`; there is no projector for patches (UserError)."""
        if at != "tower":
            raise UserError(f"{self.name} is an image encoder: it has tower features, not {at!r}")
        (states,) = hidden_states.read(self.tower, self.pixel_values(batch), [self.feature_layer])
        return states[:, self.prefix_tokens :]

    @property
    def embeds_images(self) -> bool:
        """Whether there are `image_features`: a bare vision tower has none."""
        return hasattr(self.hf, "visual_projection")

    def image_features(self, batch: PixelBatch) -> Tensor:
        """[B, P] projected image embeddings, not scaled to unit length; differentiable in `batch.x`. UserError for
        a bare vision tower."""
        if not self.embeds_images:
            raise UserError(f"{self.name} is a bare vision tower without a projection: give a whole CLIP checkpoint")
        return self.hf.visual_projection(self.tower(self.pixel_values(batch)).pooler_output)

    def embedding(self, batch: PixelBatch) -> Tensor:
        """[B, P] `image_features`; a bare vision tower's mean patch token."""
        return self.image_features(batch) if self.embeds_images else super().embedding(batch)

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """[N, P] projected text embeddings, not scaled to unit length; UserError for a bare vision tower."""
        self._need_text()
        limit = self.hf.config.text_config.max_position_embeddings
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, max_length=limit, return_tensors="pt").to(
            self.device
        )
        out = self.hf.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        return self.hf.text_projection(out.pooler_output)

    def _need_text(self) -> None:
        if self.tokenizer is None:
            raise UserError(
                f"{self.name} is a bare vision tower: for texts give a whole checkpoint with a text model, or another's"
            )


FAMILY = Family(
    checkpoints={"clip": ("CLIPModel",), "clip_vision_model": ("CLIPVisionModel", "CLIPVisionModelWithProjection")},
    encoder=CLIPEncoder,
    towers=(CLIPTower,),
    image_processors=("CLIPImageProcessor",),
)
