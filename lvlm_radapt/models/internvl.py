"""InternVL 2.5, 3 and 3.5 in transformers' layout: an own tower, images cut into crops, patches shuffled together."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from PIL import Image
from torch import Tensor
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

from lvlm_radapt.models.base import PixelBatch
from lvlm_radapt.models.conversations import CONVERSATIONS, Conversation
from lvlm_radapt.models.family import Family
from lvlm_radapt.models.llava import PLAIN_LAYERS, UNQUANTISED
from lvlm_radapt.models.tiles import TiledLVLM
from lvlm_radapt.towers.internvl import InternVLTower
from lvlm_radapt.utils.errors import UserError


class InternVLLVLM(TiledLVLM):
    """`InternVLForConditionalGeneration` behind the uniform interface.

    Images are cut into crops as its processor does unless a call asks for none, whatever the image processor's own file
    says: at most `max_patches` of them.
    """

    default_conversation: ClassVar[Conversation] = CONVERSATIONS["chatml"]
    processing = MappingProxyType({"crop_to_patches": True})

    @classmethod
    def check_config(cls, config: Any, name: str) -> None:
        """UserError where config.json has another state of the tower read than the last, without CLS."""
        if config.vision_feature_layer != -1 or config.vision_feature_select_strategy != "default":
            raise UserError(f"{name}: only vision_feature_layer -1 with the strategy default is read of an InternVL")

    def image_text(self, meta: Mapping[str, Any]) -> str:
        opening, closing = self._around()
        return f"{opening}{super().image_text(meta)}{closing}"

    def _around(self) -> tuple[str, str]:
        usual = {"start_image_token": "<img>", "end_image_token": "</img>"}
        opening, closing = (getattr(self.tokenizer, role, token) for role, token in usual.items())
        return opening, closing

    def _reserved_ids(self) -> list[int]:
        return self.tokenizer.convert_tokens_to_ids([*self._around()])

    def _cuts(self) -> bool:
        return self.image_processor.max_patches > 1

    def _crops(self, image: Image.Image) -> tuple[int, int]:
        if not self._cuts():
            return 0, 0
        processor, size = self.image_processor, (self._side, self._side)
        wide, high = get_optimal_tiled_canvas(
            (image.height, image.width), size, processor.min_patches, processor.max_patches
        )
        return (0, 0) if high * wide == 1 else (high, wide)

    @property
    def image_run(self) -> int:
        config = self.hf.config
        return int(self._side // self._first(config.vision_config.patch_size) * config.downsample_ratio) ** 2

    def tower_input(self, batch: PixelBatch) -> Tensor:
        """[B * views, 3, side, side], normalised, of each image the whole last."""
        return super().tower_input(batch).flatten(0, 1)

    def patch_states(self, batch: PixelBatch) -> Tensor:
        return super().patch_states(batch)[:, 1:]

    def project(self, states: Tensor, batch: PixelBatch) -> Tensor:
        high = int(states.shape[1] ** 0.5)
        shuffled = self.hf.model.pixel_shuffle(
            states.unflatten(1, (high, high)), scale_factor=self.hf.config.downsample_ratio
        )
        return self.hf.model.multi_modal_projector(shuffled.flatten(1, 2))


FAMILY = Family(
    checkpoints={"internvl": ("InternVLForConditionalGeneration",)},
    lvlm=InternVLLVLM,
    towers=(InternVLTower,),
    image_processors=("GotOcr2ImageProcessor",),
    plain_layers=PLAIN_LAYERS,
    unquantised=UNQUANTISED,
)
