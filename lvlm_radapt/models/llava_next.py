"""LLaVA-NeXT (1.6): the whole image and crops of it at a higher resolution, each a view of the same tower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution

from lvlm_radapt.models.base import PixelBatch
from lvlm_radapt.models.family import Family
from lvlm_radapt.models.geometry import eight_bit
from lvlm_radapt.models.llava import PLAIN_LAYERS, UNQUANTISED, LlavaLVLM
from lvlm_radapt.towers import find_tower
from lvlm_radapt.towers.clip import CLIPTower
from lvlm_radapt.towers.siglip import SiglipTower
from lvlm_radapt.utils.errors import UserError


class LlavaNextLVLM(LlavaLVLM):
    """`LlavaNextForConditionalGeneration` behind the uniform interface.

    The canvas is [3, views * side, side]: the whole image on top, below it the crops from left to right and
    from top to bottom. Every view is attacked as a picture of its own, although they show the same scene and
    the crops' black bars are no part of it: the attacker can do more than with one image file.
    """

    views_apart = True
    unpadded = "geometry pad is for LLaVA-1.5; this model cuts an image into views, use stock"

    def __init__(self, hf: Any, tokenizer: Any, image_processor: Any, *, name: str, **settings: Any) -> None:
        super().__init__(hf, tokenizer, image_processor, name=name, **settings)
        vision = hf.config.vision_config
        self._side, self._high = int(vision.image_size), int(vision.image_size) // int(vision.patch_size)
        self._canvases = [tuple(pair) for pair in hf.config.image_grid_pinpoints]
        if [tuple(pair) for pair in image_processor.image_grid_pinpoints] != self._canvases:
            raise UserError(
                f"{name}: the image processor and the model differ in image_grid_pinpoints: make "
                "preprocessor_config.json and config.json agree"
            )
        has_cls = find_tower(hf).prefix_tokens > 0
        if has_cls != (hf.config.vision_feature_select_strategy == "default"):
            raise UserError(
                f"{name}: vision_feature_select_strategy {hf.config.vision_feature_select_strategy!r} leaves no "
                f"square of patches with a {vision.model_type}: use {'default' if has_cls else 'full'}"
            )

    def canvas(self, image: Image.Image) -> tuple[int, int]:
        high, wide = self._crops(image)
        return (1 + high * wide) * self._side, self._side

    def _crops(self, image: Image.Image) -> tuple[int, int]:
        """How many crops (one below the other, side by side) are made of `image`."""
        height, width = select_best_resolution((image.height, image.width), self._canvases)
        return height // self._side, width // self._side

    def _canvas_bytes(self, image: Image.Image) -> np.ndarray:
        out = self.image_processor(images=[image], do_rescale=False, do_normalize=False, return_tensors="np")
        views = out["pixel_values"][0]
        high, wide = self.canvas(image)
        if views.shape != (high // wide, 3, wide, wide):
            raise UserError(
                f"{self.name}: the image processor gave views {views.shape}, the model takes 3x{wide}x{wide}: "
                f"size and crop_size must be {wide} and image_grid_pinpoints multiples of it"
            )
        return eight_bit(np.concatenate(list(views), axis=1))

    def _meta(self, image: Image.Image, canvas: tuple[int, int]) -> dict[str, Any]:
        meta = super()._meta(image, canvas)
        # packed once with features of width 1: the library's own rule, whatever it unpads, shrinks or adds
        views = torch.zeros(1, canvas[0] // canvas[1], self._high**2, 1)
        (packed,) = self._pack(views, [meta["size"]], torch.zeros(1))
        return {**meta, "crops": self._crops(image), "tokens": len(packed)}

    def tower_input(self, batch: PixelBatch) -> Tensor:
        """[B, views, 3, side, side], normalised."""
        return self.normalise(batch.x).unflatten(2, (-1, self._side)).transpose(1, 2).contiguous()

    def view_height(self, batch: PixelBatch) -> int:
        return self._side

    def _patches(self, batch: PixelBatch) -> int:
        return self._high**2

    def image_tokens(self, batch: PixelBatch) -> list[int]:
        return [int(meta["tokens"]) for meta in batch.meta]

    def image_embeds(self, batch: PixelBatch) -> Tensor:
        states = self.features(batch, at="projector").unflatten(1, (-1, self._high**2))
        newline = self.hf.model.image_newline.to(states.device)
        return torch.cat(self._pack(states, [meta["size"] for meta in batch.meta], newline))

    def _pack(self, views: Tensor, sizes: Sequence[tuple[int, int]], newline: Tensor) -> list[Tensor]:
        """Per image [tokens, D] of `views` [B, views, patches, D]: the base view, then the crops as one picture
        without its black bars, `newline` [D] after each row of it. sizes: (height, width) of the originals."""
        strategy = self.hf.config.vision_feature_select_strategy
        packed, _ = self.hf.model.pack_image_features(
            views, sizes, vision_feature_select_strategy=strategy, image_newline=newline
        )
        return packed


FAMILY = Family(
    checkpoints={"llava_next": ("LlavaNextForConditionalGeneration",)},
    lvlm=LlavaNextLVLM,
    towers=(CLIPTower, SiglipTower),
    image_processors=("LlavaNextImageProcessor",),
    plain_layers=PLAIN_LAYERS,
    unquantised=UNQUANTISED,
)
