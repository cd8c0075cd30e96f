"""CLIP vision transformers, as in LLaVA and CLIP: pixels [B, 3, H, W], a CLS token, then raster order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from lvlm_radapt.towers.base import (
    PLACED_ANCHOR,
    Args,
    Kwargs,
    PartLayout,
    Tower,
    argument,
    resize_rows,
    softmax_weights,
    with_argument,
)

if TYPE_CHECKING:
    from lvlm_radapt.defences.radapt.modules import GaussianFilter


class CLIPTower(Tower):
    """A module with `embeddings` and `encoder.layers`: CLIPVisionModel, or the level it once had below."""

    family = "clip"
    encoders: ClassVar[tuple[str, ...]] = ("CLIPVisionModel", "CLIPVisionTransformer")
    layout = PartLayout(("embeddings.", "pre_layrnorm."), "encoder.layers.", "layer_norm1")
    prefix_tokens = 1

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self._embeddings: Any = module.embeddings

    @property
    def first_attention(self) -> nn.Module:
        module: Any = self.module
        return module.encoder.layers[0].self_attn

    def attention_weights(self, hidden: Tensor, **kwargs: Any) -> list[Tensor]:
        """Of `hidden` [B, T, D], one sequence an image."""
        attention: Any = self.first_attention
        q, k = (
            project(hidden).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
            for project in (attention.q_proj, attention.k_proj)
        )
        return [*softmax_weights(q, k, attention.scale)]

    @property
    def width(self) -> int:
        return int(self._embeddings.embed_dim)

    def filter_pixels(self, args: Args, kwargs: Kwargs, gaussian: GaussianFilter) -> tuple[Args, Kwargs]:
        pixels = argument(args, kwargs, 0, "pixel_values")
        if pixels is None:
            return args, kwargs
        return with_argument(args, kwargs, 0, "pixel_values", gaussian(pixels))

    def place_anchor(
        self, values: Tensor, grid: tuple[int, int] | None, args: Args, kwargs: Kwargs
    ) -> tuple[Args, Kwargs]:
        if grid is None or argument(args, kwargs, 0, "pixel_values") is None:
            return args, kwargs
        here = self.grid(args, kwargs)  # another one than the anchor's: a guide of 224 px, or interpolated positions
        return args, kwargs if here == grid else {
            **kwargs,
            PLACED_ANCHOR: resize_rows(values, self.prefix_tokens, grid, here),
        }

    def order(self, args: Args, kwargs: Kwargs) -> Tensor | None:
        return None

    def grid(self, args: Args, kwargs: Kwargs) -> tuple[int, int]:
        height, width = argument(args, kwargs, 0, "pixel_values").shape[-2:]
        patch = int(self._embeddings.patch_size)
        return height // patch, width // patch

    def uniform_input(self, colour: Tensor) -> tuple[Args, Kwargs]:
        side = int(self._embeddings.image_size)
        pixels = colour.to(device=self.device, dtype=self.dtype).reshape(1, 3, 1, 1)
        return (), {"pixel_values": pixels.expand(1, 3, side, side).contiguous()}
