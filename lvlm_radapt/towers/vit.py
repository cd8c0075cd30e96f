"""Plain vision transformers of transformers: pixels [B, 3, H, W], a CLS token, then raster order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lvlm_radapt.towers.base import Args, Kwargs, PartLayout, argument, softmax_weights
from lvlm_radapt.towers.clip import CLIPTower
from lvlm_radapt.utils.errors import UserError


class ViTTower(CLIPTower):
    """ViTModel."""

    family = "vit"
    encoders = ("ViTModel",)
    layout = PartLayout(("embeddings.",), "layers.", "layernorm_before")
    image_mean = (0.5, 0.5, 0.5)
    image_std = (0.5, 0.5, 0.5)

    @property
    def first_attention(self) -> nn.Module:
        return self.module.get_submodule(f"{self.layout.blocks}0.attention")

    @property
    def width(self) -> int:
        return int(self._embeddings.cls_token.shape[-1])

    def attention_weights(self, hidden: Tensor, **kwargs: Any) -> list[Tensor]:
        """Of `hidden` [B, T, D], one sequence an image."""
        attention: Any = self.first_attention
        q, k = (
            project(hidden).unflatten(-1, (attention.num_attention_heads, -1)).transpose(1, 2)
            for project in (attention.q_proj, attention.k_proj)
        )
        return [*softmax_weights(q, k, attention.scaling)]

    def grid(self, args: Args, kwargs: Kwargs) -> tuple[int, int]:
        height, width = argument(args, kwargs, 0, "pixel_values").shape[-2:]
        high, wide = self._embeddings.patch_embeddings.patch_size
        return height // high, width // wide

    def uniform_input(self, colour: Tensor) -> tuple[Args, Kwargs]:
        pixels = colour.to(device=self.device, dtype=self.dtype).reshape(1, 3, 1, 1)
        return (), {"pixel_values": torch.tile(pixels, (1, 1, *self._embeddings.patch_embeddings.image_size))}


class Dinov2Tower(ViTTower):
    """Dinov2Model. It takes other sizes than its own, with its positions interpolated, and an anchor is too."""

    family = "dinov2"
    encoders = ("Dinov2Model",)
    layout = PartLayout(("embeddings.",), "encoder.layer.", "norm1")
    image_mean = (0.485, 0.456, 0.406)
    image_std = (0.229, 0.224, 0.225)

    def place_anchor(
        self, values: Tensor, grid: tuple[int, int] | None, args: Args, kwargs: Kwargs
    ) -> tuple[Args, Kwargs]:
        own = hasattr(self.first_attention, "q_proj")  # before transformers 5.24 no keyword reaches the attention
        if not own and grid is not None and self.grid(args, kwargs) != grid:
            raise UserError("an anchor of another image size needs transformers 5.24 with DINOv2")
        return super().place_anchor(values, grid, args, kwargs)

    def attention_weights(self, hidden: Tensor, **kwargs: Any) -> list[Tensor]:
        attention: Any = self.first_attention
        if hasattr(attention, "q_proj"):
            return super().attention_weights(hidden, **kwargs)
        inner = attention.attention  # before transformers 5.24
        q, k = (
            project(hidden).unflatten(-1, (inner.num_attention_heads, -1)).transpose(1, 2)
            for project in (inner.query, inner.key)
        )
        return [*softmax_weights(q, k, inner.scaling)]
