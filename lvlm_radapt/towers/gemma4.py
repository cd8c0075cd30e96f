"""Gemma 4's vision transformer: images of any size as rows of patches in raster order, padded to one length.

A row of the pixel input is a patch, its columns (p, p, C); `pixel_position_ids` says where it lies, (x, y), and -1 of
padding. Positions are learned for each axis, and rotate queries and keys as well.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
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


def image_rows(images: Tensor, patch: int) -> Tensor:
    """[B, 3, H, W] as rows of patches [B, H / p * W / p, p * p * 3]."""
    return functional.unfold(images, patch, stride=patch).unflatten(1, (3, -1)).permute(0, 3, 2, 1).flatten(2)


def rows_image(rows: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """The inverse of `image_rows`: [B, high * wide, p * p * 3] as [B, 3, H, W]."""
    columns = rows.unflatten(2, (-1, 3)).permute(0, 3, 2, 1).flatten(1, 2)
    return functional.fold(columns, (grid[0] * patch, grid[1] * patch), patch, stride=patch)


def places_on(grid: tuple[int, int], length: int) -> Tensor:
    """Long [length, 2]: (x, y) of each patch on that grid, then -1 for padding."""
    y, x = torch.meshgrid(*map(torch.arange, grid), indexing="ij")
    places = torch.stack([x, y], dim=-1).flatten(0, 1)
    return functional.pad(places, (0, 0, 0, length - len(places)), value=-1)


class Gemma4Tower(AnyGridTower):
    """Gemma4VisionModel."""

    family = "gemma4"
    encoders = ("Gemma4VisionModel",)
    layout = PartLayout(("patch_embedder.",), "encoder.layers.", "input_layernorm")
    image_mean = (0.0, 0.0, 0.0)
    image_std = (1.0, 1.0, 1.0)

    @property
    def _config(self) -> Any:
        return self.module.config

    @property
    def first_attention(self) -> nn.Module:
        module: Any = self.module
        return module.encoder.layers[0].self_attn

    @property
    def width(self) -> int:
        return int(self._config.hidden_size)

    def grids(self, args: Args, kwargs: Kwargs) -> list[tuple[int, int]]:
        most = argument(args, kwargs, 1, "pixel_position_ids").amax(1) + 1
        return [(int(high), int(wide)) for wide, high in most.tolist()]

    def filter_pixels(self, args: Args, kwargs: Kwargs, gaussian: GaussianFilter) -> tuple[Args, Kwargs]:
        rows, patch = argument(args, kwargs, 0, "pixel_values"), self._config.patch_size
        filtered = []
        for image, (high, wide) in zip(rows, self.grids(args, kwargs), strict=True):
            real, padding = image[None, : high * wide], image[None, high * wide :]
            seen = gaussian(rows_image(real, (high, wide), patch))
            filtered.append(torch.cat([image_rows(seen, patch), padding], dim=1))
        return with_argument(args, kwargs, 0, "pixel_values", torch.cat(filtered))

    def place_anchor_per_grid(
        self, rows_on: Callable[[tuple[int, int]], Tensor], args: Args, kwargs: Kwargs
    ) -> tuple[Args, Kwargs]:
        length = argument(args, kwargs, 0, "pixel_values").shape[1]
        each = map(rows_on, self.grids(args, kwargs))
        placed = torch.stack([functional.pad(rows, (0, 0, 0, length - len(rows))) for rows in each])
        return args, {**kwargs, PLACED_ANCHOR: placed}

    def uniform_input(self, colour: Tensor, grid: tuple[int, int] | None = None) -> tuple[Args, Kwargs]:
        side = 16 * self._config.pooling_kernel_size  # a square image's, of the 280 tokens that are usual
        high, wide = (side, side) if grid is None else grid
        row = colour.to(device=self.device, dtype=self.dtype).repeat(self._config.patch_size**2)
        places = places_on((high, wide), high * wide).to(self.device)
        return (), {"pixel_values": row.repeat(1, high * wide, 1), "pixel_position_ids": places[None]}

    def attention_weights(self, hidden: Tensor, **kwargs: Any) -> list[Tensor]:
        """Of `hidden` [B, P, D], one sequence an image, without its padding."""
        attention: Any = self.first_attention
        modeling: Any = sys.modules[type(attention).__module__]
        places = kwargs["position_ids"]
        q, k = (
            modeling.apply_multidimensional_rope(
                norm(project(hidden).unflatten(-1, (-1, attention.head_dim))), *kwargs["position_embeddings"], places
            ).transpose(1, 2)
            for project, norm in ((attention.q_proj, attention.q_norm), (attention.k_proj, attention.k_norm))
        )
        k = modeling.repeat_kv(k, attention.num_key_value_groups)
        real = (places != -1).all(-1)
        return [
            softmax_weights(queries[:, here], keys[:, here], attention.scaling)
            for queries, keys, here in zip(q, k, real, strict=True)
        ]
