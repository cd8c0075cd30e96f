"""InternVL's vision transformer: pixels [B, 3, H, W], a CLS token, then raster order.

Each block scales what its attention gives, channel by channel, before it adds it (layer scale). The anchor is mixed
into the attention's projected output, before that scale.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lvlm_radapt.towers.base import PartLayout, softmax_weights
from lvlm_radapt.towers.idefics3 import OneGridTower
from lvlm_radapt.towers.vit import ViTTower


class InternVLTower(OneGridTower, ViTTower):
    """InternVLVisionModel."""

    family = "internvl"
    encoders = ("InternVLVisionModel",)
    layout = PartLayout(("embeddings.",), "encoder.layer.", "layernorm_before")
    image_mean = (0.485, 0.456, 0.406)
    image_std = (0.229, 0.224, 0.225)

    def attention_weights(self, hidden: Tensor, **kwargs: Any) -> list[Tensor]:
        """Of `hidden` [B, T, D], one sequence an image."""
        attention: Any = self.first_attention
        q, k = (
            norm(project(hidden)).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
            for project, norm in ((attention.q_proj, attention.q_norm), (attention.k_proj, attention.k_norm))
        )
        return [*softmax_weights(q, k, attention.scale)]
