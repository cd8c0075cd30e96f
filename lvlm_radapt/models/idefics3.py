"""Idefics3 and SmolVLM: a copy of SigLIP's tower, images cut into crops, patches shuffled into fewer tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from torch import Tensor, nn
from transformers.models.idefics3.image_processing_pil_idefics3 import get_resize_output_image_size

from lvlm_radapt.models.base import PixelBatch
from lvlm_radapt.models.conversations import CONVERSATIONS, Conversation
from lvlm_radapt.models.family import Family
from lvlm_radapt.models.llava import PLAIN_LAYERS
from lvlm_radapt.models.tiles import TiledLVLM
from lvlm_radapt.towers.idefics3 import Idefics3Tower


class Idefics3LVLM(TiledLVLM):
    """`Idefics3ForConditionalGeneration` and `SmolVLMForConditionalGeneration` behind one interface."""

    default_conversation: ClassVar[Conversation] = CONVERSATIONS["idefics3"]

    def __init__(self, hf: Any, tokenizer: Any, image_processor: Any, **settings: Any) -> None:
        super().__init__(hf, tokenizer, image_processor, **settings)
        # pixels stay float32 up to here, behind the filter; this tower does not round them itself
        self.hf.model.vision_model.embeddings.patch_embedding.register_forward_pre_hook(_rounded)

    @property
    def tower(self) -> nn.Module:
        return self.hf.model.vision_model

    @property
    def language_model(self) -> Any:
        return self.hf.model.text_model

    def _reserved_ids(self) -> list[int]:
        return self.tokenizer.convert_tokens_to_ids([*self._around()])

    def _end_id(self) -> int:
        return int(self.tokenizer.convert_tokens_to_ids("<end_of_utterance>"))

    def _around(self) -> tuple[str, str]:
        """What stands before every view and after the last, and what says that a view is the whole image."""
        return "<fake_token_around_image>", "<global-img>"

    def image_text(self, meta: Mapping[str, Any]) -> str:
        fake, whole = self._around()
        image, (high, wide) = self.image_mark(self.hf.config, self.tokenizer), meta.get("crops", (0, 0))
        rows = (
            "".join(f"{fake}<row_{row + 1}_col_{column + 1}>{image}" for column in range(wide)) for row in range(high)
        )
        crops = "".join(f"{row}\n" for row in rows)
        return (f"{crops}\n" if crops else "") + f"{fake}{whole}{image}{fake}"

    def _cuts(self) -> bool:
        return bool(self.image_processor.do_image_splitting)

    def _crops(self, image: Image.Image) -> tuple[int, int]:
        if not self._cuts():
            return 0, 0
        height, width = image.height, image.width
        if self.image_processor.do_resize:
            shape_alone = np.broadcast_to(np.uint8(0), (height, width))
            longest = dict(self.image_processor.size)["longest_edge"]
            height, width = get_resize_output_image_size(shape_alone, resolution_max_side=longest)
        ratio, side = width / height, self._side
        if width >= height:
            width = math.ceil(width / side) * side
            height = int(width / ratio)
        else:
            height = math.ceil(height / side) * side
            width = int(height * ratio)
        high, wide = math.ceil(height / side), math.ceil(width / side)
        return (0, 0) if high == wide == 1 else (high, wide)

    @property
    def image_run(self) -> int:
        config = self.hf.config
        return (self._side // config.vision_config.patch_size // config.scale_factor) ** 2

    def project(self, states: Tensor, batch: PixelBatch) -> Tensor:
        return self.hf.model.connector(states)


class SmolVLMLVLM(Idefics3LVLM):
    """The same with the opening token that SmolVLM's tokenizer does not write by itself."""

    default_conversation: ClassVar[Conversation] = CONVERSATIONS["smolvlm"]


def _rounded(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (args[0].to(module.weight.dtype), *args[1:])


UNQUANTISED = ("model.vision_model", "model.connector", "lm_head")

FAMILY = Family(
    checkpoints={"idefics3": ("Idefics3ForConditionalGeneration",)},
    lvlm=Idefics3LVLM,
    towers=(Idefics3Tower,),
    image_processors=("Idefics3ImageProcessor",),
    plain_layers=PLAIN_LAYERS,
    unquantised=UNQUANTISED,
)
