"""Language models that see crops of an image and the whole of it, each a view of the same tower."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from torch import Tensor

from lvlm_radapt.models.base import PixelBatch
from lvlm_radapt.models.geometry import eight_bit
from lvlm_radapt.models.siglip_lvlm import SiglipLVLM
from lvlm_radapt.utils.errors import UserError


class TiledLVLM(SiglipLVLM):
    """The canvas is [3, views * side, side]: the whole image on top, below it the crops from left to right and from top
    to bottom. The language model gets the crops first. An image of one crop is one view, the whole.

    Every view is attacked as a picture of its own: the attacker can do more than with one image file. Where the image
    processor's settings switch the crops off there is one view, and nothing to be told.
    """

    whole_view: ClassVar[int] = -1

    def __init__(self, hf: Any, tokenizer: Any, image_processor: Any, **settings: Any) -> None:
        self._side = int(self._first(hf.config.vision_config.image_size))
        super().__init__(hf, tokenizer, image_processor, **settings)
        self.views_apart = self._cuts()

    @staticmethod
    def _first(size: Any) -> int:
        return size if isinstance(size, int) else size[0]

    @property
    @abstractmethod
    def image_run(self) -> int:
        """How many image tokens a view takes."""

    @abstractmethod
    def _cuts(self) -> bool:
        """Whether the image processor's settings let it cut images at all."""

    @abstractmethod
    def _crops(self, image: Image.Image) -> tuple[int, int]:
        """How many crops (one below the other, side by side) are made of `image`; (0, 0) for none."""

    def canvas(self, image: Image.Image) -> tuple[int, int]:
        high, wide = self._crops(image)
        return (1 + high * wide) * self._side, self._side

    def _canvas_bytes(self, image: Image.Image) -> np.ndarray:
        out = self.image_processor(
            images=[image], do_rescale=False, do_normalize=False, return_tensors="np", **self.processing
        )
        *_, channels, height, width = out["pixel_values"].shape
        views = out["pixel_values"].reshape(-1, channels, height, width)
        if views.shape != (self.canvas(image)[0] // self._side, 3, self._side, self._side):
            raise UserError(
                f"{self.name}: the image processor gave views {views.shape}, the model takes 3x{self._side}x"
                f"{self._side}: make preprocessor_config.json and config.json agree"
            )
        return eight_bit(np.concatenate([views[-1], *views[:-1]], axis=1))

    def _meta(self, image: Image.Image, canvas: tuple[int, int]) -> dict[str, Any]:
        crops = {"crops": self._crops(image)} if self.views_apart else {}
        return super()._meta(image, canvas) | crops

    def tower_input(self, batch: PixelBatch) -> Tensor:
        """[B, views, 3, side, side], normalised, the whole image last."""
        views = self.normalise(batch.x).unflatten(2, (-1, self._side)).transpose(1, 2)
        return views.roll(-1, dims=1).contiguous()

    def view_height(self, batch: PixelBatch) -> int:
        return self._side

    def image_tokens(self, batch: PixelBatch) -> list[int]:
        return [self.image_run * batch.x.shape[-2] // self._side] * len(batch)
