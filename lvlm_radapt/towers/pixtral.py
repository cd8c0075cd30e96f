"""Pixtral's vision transformer, as in Mistral 3: images of any size in one sequence, each in raster order.

Pixels are [B, 3, H, W]; smaller images are padded below and on the right, and `image_sizes` says how large each is.
Positions rotate queries and keys alone, by row and by column.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lvlm_radapt.towers.base import (
    PLACED_ANCHOR,
    AnyGridTower,
    Args,
    Kwargs,
    PartLayout,
    argument,
    softmax_weights,
    with_argument,
)

if TYPE_CHECKING:
    from lvlm_radapt.defences.radapt.modules import GaussianFilter


class PixtralTower(AnyGridTower):
    """PixtralVisionModel."""

    family = "pixtral"
    encoders = ("PixtralVisionModel",)
    layout = PartLayout(("patch_conv.", "ln_pre."), "transformer.layers.", "attention_norm")
    absolute_positions = False

    @property
    def first_attention(self) -> nn.Module:
        module: Any = self.module
        return module.transformer.layers[0].attention

    @property
    def width(self) -> int:
        attention: Any = self.first_attention
        return int(attention.embed_dim)

    @property
    def _patch(self) -> int:
        module: Any = self.module
        return int(module.patch_size)

    def grids(self, args: Args, kwargs: Kwargs) -> list[tuple[int, int]]:
        pixels, sizes = argument(args, kwargs, 0, "pixel_values"), argument(args, kwargs, 1, "image_sizes")
        each = [pixels.shape[-2:]] * len(pixels) if sizes is None else sizes
        return [(int(height) // self._patch, int(width) // self._patch) for height, width in each]

    def filter_pixels(self, args: Args, kwargs: Kwargs, gaussian: GaussianFilter) -> tuple[Args, Kwargs]:
        pixels, filtered = argument(args, kwargs, 0, "pixel_values"), []
        for image, grid in zip(pixels, self.grids(args, kwargs), strict=True):
            height, width = (self._patch * count for count in grid)
            padding = (0, image.shape[-1] - width, 0, image.shape[-2] - height)
            filtered.append(functional.pad(gaussian(image[:, :height, :width]), padding))
        return with_argument(args, kwargs, 0, "pixel_values", torch.stack(filtered))

    def place_anchor_per_grid(
        self, rows_on: Callable[[tuple[int, int]], Tensor], args: Args, kwargs: Kwargs
    ) -> tuple[Args, Kwargs]:
        rows = torch.cat([rows_on(grid) for grid in self.grids(args, kwargs)])
        return args, {**kwargs, PLACED_ANCHOR: rows}

    def uniform_input(self, colour: Tensor, grid: tuple[int, int] | None = None) -> tuple[Args, Kwargs]:
        high, wide = (2, 2) if grid is None else grid  # all grids answer alike
        pixels = colour.to(device=self.device, dtype=self.dtype).reshape(1, 3, 1, 1)
        return (), {"pixel_values": pixels.expand(1, 3, high * self._patch, wide * self._patch).contiguous()}

    def attention_weights(self, hidden: Tensor, **kwargs: Any) -> list[Tensor]:
        """Of `hidden` [1, N, D], whose sequences are the images: the blocks in which the mask lets tokens see each
        other."""
        attention: Any = self.first_attention
        modeling: Any = sys.modules[type(attention).__module__]
        q, k = (
            project(hidden).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
            for project in (attention.q_proj, attention.k_proj)
        )
        q, k = modeling.apply_rotary_pos_emb(q, k, *kwargs["position_embeddings"], unsqueeze_dim=0)
        seen = kwargs["attention_mask"][0, 0] == 0
        # a token that does not see the one before it begins an image
        begins = ~torch.cat([seen.new_zeros(1), seen.diagonal(-1)])
        lengths = begins.nonzero().flatten().diff(append=begins.new_tensor([len(begins)], dtype=torch.long)).tolist()
        return [
            softmax_weights(q[0, :, start:stop], k[0, :, start:stop], attention.scaling)
            for start, stop in pairwise(accumulate(lengths, initial=0))
        ]
