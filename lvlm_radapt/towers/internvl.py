"""InternVL's vision transformer: pixels [B, 3, H, W], a CLS token, then raster order.

Each block scales what its attention gives, channel by channel, before it adds it (layer scale). The anchor is mixed
into the attention's projected output, before that scale.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lvlm_radapt.towers.base import Args, Kwargs, PartLayout, argument, softmax_weights
from lvlm_radapt.towers.idefics3 import OneGridTower


class InternVLTower(OneGridTower):
    """InternVLVisionModel."""

    family = "internvl"
    encoders = ("InternVLVisionModel",)
    layout = PartLayout(("embeddings.",), "encoder.layer.", "layernorm_before")
    prefix_tokens = 1
    image_mean = (0.485, 0.456, 0.406)
    image_std = (0.229, 0.224, 0.225)

    @property
    def first_attention(self) -> nn.Module:
        module: Any = self.module
        return module.encoder.layer[0].attention

    @property
    def width(self) -> int:
        return int(self._embeddings.cls_token.shape[-1])

    def attention_weights(self, hidden: Tensor, **kwargs: Any) -> list[Tensor]:
        """Of `hidden` [B, T, D], one sequence an image."""
        attention: Any = self.first_attention
        q, k = (
            norm(project(hidden)).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
            for project, norm in ((attention.q_proj, attention.q_norm), (attention.k_proj, attention.k_norm))
        )
        return [*softmax_weights(q, k, attention.scale)]

    def grid(self, args: Args, kwargs: Kwargs) -> tuple[int, int]:
        height, width = argument(args, kwargs, 0, "pixel_values").shape[-2:]
        high, wide = self._embeddings.patch_size
        return height // high, width // wide

    def uniform_input(self, colour: Tensor) -> tuple[Args, Kwargs]:
        pixels = colour.to(device=self.device, dtype=self.dtype).reshape(1, 3, 1, 1)
        return (), {"pixel_values": torch.tile(pixels, (1, 1, *self._embeddings.image_size))}
