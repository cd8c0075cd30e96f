"""Mistral 3 (Mistral Small 3.1 and 3.2) and Pixtral: images of any size, a token that ends each row of patches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.models.pixtral.image_processing_pil_pixtral import get_resize_output_image_size

from lvlm_radapt.models.base import PixelBatch
from lvlm_radapt.models.checks import lost_layer
from lvlm_radapt.models.conversations import CONVERSATIONS, Conversation
from lvlm_radapt.models.family import Family
from lvlm_radapt.models.siglip_lvlm import SiglipLVLM
from lvlm_radapt.models.speedups import hidden_states
from lvlm_radapt.towers.pixtral import PixtralTower
from lvlm_radapt.utils.errors import UserError


class PixtralLVLM(SiglipLVLM):
    """`LlavaForConditionalGeneration` over Pixtral's tower: every patch is a token.

    The tower gets one image a call: in one call for all, each image would be compared with every other and masked.
    """

    default_conversation: ClassVar[Conversation] = CONVERSATIONS["mistral"]
    processor_class: ClassVar[str | None] = "PixtralProcessor"
    unpadded: ClassVar[str | None] = "geometry pad is for LLaVA-1.5; Pixtral keeps the image's shape, use stock"

    def __init__(self, hf: Any, tokenizer: Any, image_processor: Any, **settings: Any) -> None:
        self._patch = int(hf.config.vision_config.patch_size)
        self._unit = self._patch * int(getattr(hf.config, "spatial_merge_size", 1))
        # as its processor tells its image processor, whatever the file of that one has
        self.processing = {"patch_size": self._unit}
        super().__init__(hf, tokenizer, image_processor, **settings)
        hidden_states.prepare(self.tower)

    @classmethod
    def check_config(cls, config: Any, name: str) -> None:
        """UserError where config.json has a state of the tower read that is not there, or a class token left out."""
        layer = lost_layer(config, int(config.vision_config.num_hidden_layers))
        if layer is not None:
            raise UserError(f"{name}: config.json has layer {layer} of the vision tower read, which it does not have")
        if getattr(config, "vision_feature_select_strategy", "full") != "full":
            raise UserError(f"{name}: vision_feature_select_strategy must be full: Pixtral has no class token to drop")

    def processor_values(self) -> dict[str, Any]:
        return {"patch_size": self._patch, "spatial_merge_size": self._unit // self._patch}

    def _around(self) -> tuple[str, str]:
        """What stands after each row of patches, and after the last one."""
        return "[IMG_BREAK]", "[IMG_END]"

    def _reserved_ids(self) -> list[int]:
        return self.tokenizer.convert_tokens_to_ids([*self._around()])

    def _target_prefix(self, opening: str) -> str:
        return ""

    def image_text(self, meta: Mapping[str, Any]) -> str:
        image, (row_end, end) = self.image_mark(self.hf.config, self.tokenizer), self._around()
        rows = meta["canvas"][0] // self._unit if "canvas" in meta else 1
        return row_end.join([image] * rows) + end

    def image_tokens(self, batch: PixelBatch) -> list[int]:
        height, width = batch.x.shape[-2:]
        return [height // self._unit * (width // self._unit)] * len(batch)

    def canvas(self, image: Image.Image) -> tuple[int, int]:
        if not self.image_processor.do_resize:
            return image.height, image.width
        size = dict(self.image_processor.size)
        most = size.get("longest_edge") or (size["height"], size["width"])
        shape_alone = np.broadcast_to(np.uint8(0), (3, image.height, image.width))
        height, width = get_resize_output_image_size(shape_alone, most, self._unit, "channels_first")
        if min(height, width) < 1:
            raise UserError(
                f"{self.name}: {image.width}x{image.height} px are too thin: nothing is left of the shorter side"
            )
        return height, width

    def patch_states(self, batch: PixelBatch) -> Tensor:
        """[B, patches, D] of the layer(s) that the projector reads, joined."""
        layers = self.hf.config.vision_feature_layer
        wanted = [layers] if isinstance(layers, int) else layers
        each = (hidden_states.read(self.tower, one[None], wanted) for one in self.pixel_values(batch))
        return torch.cat([torch.cat(states, dim=-1) for states in each])


class Mistral3LVLM(PixtralLVLM):
    """`Mistral3ForConditionalGeneration`: blocks of patches are merged into a token each."""

    def project(self, states: Tensor, batch: PixelBatch) -> Tensor:
        sizes = [tuple(batch.x.shape[-2:])] * len(batch)
        return self.hf.model.multi_modal_projector(states.flatten(0, 1), sizes).unflatten(0, (len(batch), -1))


FAMILY = Family(
    checkpoints={"mistral3": ("Mistral3ForConditionalGeneration",)},
    lvlm=Mistral3LVLM,
    towers=(PixtralTower,),
    image_processors=("PixtralImageProcessor",),
    plain_layers=("MistralDecoderLayer", "Ministral3DecoderLayer"),
    unquantised=("model.vision_tower", "model.multi_modal_projector", "lm_head"),
)
