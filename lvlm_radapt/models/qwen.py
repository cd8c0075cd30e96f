"""Qwen2-VL, 2.5 and 3: images of any size in merged patches, three-axis rotary positions."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from lvlm_radapt.models.base import LVLM, FeaturePoint, PixelBatch
from lvlm_radapt.models.conversations import CONVERSATIONS, Conversation
from lvlm_radapt.models.family import Family
from lvlm_radapt.models.geometry import eight_bit
from lvlm_radapt.towers.qwen import QwenTower, batch_equal_windows, images_to_rows, rows_to_images, token_order
from lvlm_radapt.utils.errors import UserError


class QwenLVLM(LVLM):
    """`Qwen2VLForConditionalGeneration` and `Qwen2_5_VLForConditionalGeneration` behind one interface.

    Its vision attention is made to run equal windows in one call (the stock code loops over them); the result
    is the same up to rounding.
    """

    default_conversation: ClassVar[Conversation] = CONVERSATIONS["qwen"]
    grows: ClassVar[bool] = True
    unpadded: ClassVar[str | None] = "geometry pad is for LLaVA; Qwen keeps the image's shape, use stock"

    def __init__(self, hf: Any, tokenizer: Any, image_processor: Any, **settings: Any) -> None:
        super().__init__(hf, tokenizer, image_processor, **settings)
        batch_equal_windows(hf)
        self._check_positions()
        shape = QwenTower(self.tower)
        self._patch, self._merge, self._temporal = shape.patch_size, shape.merge_size, shape.temporal
        self._window = shape.window

    def _check_positions(self) -> None:
        """UserError where the three axes of config.json's mrope_section do not share out what is rotated of a head."""
        rotary = self.language_model.rotary_emb
        half = rotary.inv_freq
        try:
            rotary(half.new_zeros(1, 1, 1), torch.zeros(3, 1, 1, dtype=torch.long, device=half.device))
        except RuntimeError as error:
            section = [*rotary.mrope_section]
            raise UserError(
                f"{self.name}: mrope_section {section} in config.json adds up to {sum(section)}, not to half of what "
                f"is rotated of a head, {len(half)}: one of the two is of another model"
            ) from error

    def _reserved_ids(self) -> list[int]:
        config = self.hf.config
        return [config.video_token_id, config.vision_start_token_id, config.vision_end_token_id]

    def _end_id(self) -> int:
        return int(self.tokenizer.convert_tokens_to_ids("<|im_end|>"))

    def _target_prefix(self, opening: str) -> str:
        return ""

    @classmethod
    def limited(cls, image_processor: Any, max_pixels: int | None, name: str) -> Any:
        """UserError where the settings lack the least or most pixels of a canvas, or `max_pixels` is below them."""
        size = {key: value for key, value in dict(image_processor.size).items() if value is not None}
        lost = [key for key in ("shortest_edge", "longest_edge") if key not in size]
        if lost:
            raise UserError(
                f"{name}: size in its image processor's settings lacks {' and '.join(lost)}, the least and the most "
                f"pixels of a canvas: it has only {', '.join(size) or 'nothing'}"
            )
        if max_pixels is None:
            return image_processor
        frames = image_processor.temporal_patch_size if cls.counts_frames else 1
        least = size["shortest_edge"] // frames
        if max_pixels < least:
            raise UserError(f"{name}: max pixels {max_pixels} is below its least canvas, {least} pixels")
        return type(image_processor).from_dict(
            image_processor.to_dict() | {"size": size | {"longest_edge": max_pixels * frames}}
        )

    @property
    def tower(self) -> nn.Module:
        return self.hf.model.visual

    def canvas(self, image: Image.Image) -> tuple[int, int]:
        factor = self._patch * self._merge
        if not self.image_processor.do_resize:
            return image.height, image.width
        size = self.image_processor.size
        try:
            return self._resized(
                image.height,
                image.width,
                factor=factor,
                min_pixels=size["shortest_edge"],
                max_pixels=size["longest_edge"],
            )
        except ValueError as error:
            raise UserError(f"an image of {image.width}x{image.height} px cannot be used: {error}") from error

    def _resized(self, height: int, width: int, **limits: int) -> tuple[int, int]:
        """(H, W) of the canvas, by the family's own rule; ValueError for an image that it refuses."""
        return smart_resize(height, width, **limits)

    def _canvas_bytes(self, image: Image.Image) -> np.ndarray:
        out = self.image_processor(images=[image], do_rescale=False, do_normalize=False, return_tensors="pt")
        # the processor answers in patch rows: put them together again
        frames = rows_to_images(out["pixel_values"], out["image_grid_thw"], self._patch, self._merge, self._temporal)
        return eight_bit(frames[0][0].numpy())

    def _meta(self, image: Image.Image, canvas: tuple[int, int]) -> dict[str, Any]:
        return {**super()._meta(image, canvas), "grid": (1, canvas[0] // self._patch, canvas[1] // self._patch)}

    def tower_input(self, batch: PixelBatch) -> Tensor:
        """[B * gh * gw, 3 * T * p * p] normalised patch rows, image after image, in merge-block order."""
        return images_to_rows(self.normalise(batch.x), self._patch, self._merge, self._temporal)

    def image_grid_thw(self, batch: PixelBatch) -> Tensor:
        """Long [B, 3]: (1, patches high, patches wide) of every image."""
        return torch.tensor([(1, *self._grid(batch))] * len(batch))

    def features(self, batch: PixelBatch, at: FeaturePoint = "tower") -> Tensor:
        """`tower`: the last block's output, before the merger, one row a patch; `projector`: the merger's
        output, one row a merged block. Both in raster order whatever the window order inside."""
        if at == "projector":
            return self.image_embeds(batch)
        if at != "tower":
            raise UserError(f"features at {at!r} are unknown, choose tower or projector")
        rows = self._patch_states(batch)
        order = token_order([(1, *self._grid(batch))], self._merge, self._window)
        raster = torch.argsort(order).to(rows.device)
        return rows.unflatten(0, (len(batch), -1))[:, raster]

    def _patch_states(self, batch: PixelBatch) -> Tensor:
        """The last block's output, a row a patch, in the tower's own order."""
        return self.run_tower(batch).last_hidden_state

    def run_tower(self, batch: PixelBatch) -> Any:
        # called directly: the full model would round the pixels to half precision before the filter
        grid = self.image_grid_thw(batch).to(self.device)
        return self.tower(self.pixel_values(batch), grid_thw=grid)

    def _grid(self, batch: PixelBatch) -> tuple[int, int]:
        return batch.x.shape[-2] // self._patch, batch.x.shape[-1] // self._patch

    def image_tokens(self, batch: PixelBatch) -> list[int]:
        high, wide = self._grid(batch)
        return [high * wide // self._merge**2] * len(batch)

    def image_embeds(self, batch: PixelBatch) -> Tensor:
        return self.run_tower(batch).pooler_output.unflatten(0, (len(batch), -1))

    def _positions(self, ids: Tensor, mask: Tensor, batch: PixelBatch) -> Tensor:
        # without the token types transformers would count image tokens in one dimension, silently
        types = (ids == self.text.image_id).int()
        grid = self.image_grid_thw(batch)
        positions, _ = self.hf.model.get_rope_index(ids, types, image_grid_thw=grid, attention_mask=mask)
        return positions


UNQUANTISED = ("model.visual", "lm_head")

FAMILY = Family(
    checkpoints={
        "qwen2_vl": ("Qwen2VLForConditionalGeneration",),
        "qwen2_5_vl": ("Qwen2_5_VLForConditionalGeneration",),
    },
    lvlm=QwenLVLM,
    towers=(QwenTower,),
    image_processors=("Qwen2VLImageProcessor",),
    plain_layers=("Qwen2VLDecoderLayer", "Qwen2_5_VLDecoderLayer"),
    unquantised=UNQUANTISED,
)
