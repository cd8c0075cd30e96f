"""Qwen3-VL: as its forerunners, with features of inner vision layers added into the first language layers."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from lvlm_radapt.models.base import PixelBatch
from lvlm_radapt.models.conversations import CONVERSATIONS, Conversation
from lvlm_radapt.models.family import Family
from lvlm_radapt.models.qwen import UNQUANTISED, QwenLVLM
from lvlm_radapt.towers.qwen import QwenTower


class Qwen3LVLM(QwenLVLM):
    """`Qwen3VLForConditionalGeneration` and its mixture of experts behind the uniform interface.

    Given embeddings in place of token ids, transformers leaves the inner features (deepstack) out: loss and
    generation hand them to the language model themselves.
    """

    default_conversation: ClassVar[Conversation] = CONVERSATIONS["qwen3"]

    def _visual_inputs(self, batch: PixelBatch, is_image: Tensor) -> tuple[Tensor, dict[str, Any]]:
        out = self.run_tower(batch)
        return out.pooler_output, {"visual_pos_masks": is_image, "deepstack_visual_embeds": out.deepstack_features}


FAMILY = Family(
    checkpoints={
        "qwen3_vl": ("Qwen3VLForConditionalGeneration",),
        "qwen3_vl_moe": ("Qwen3VLMoeForConditionalGeneration",),
    },
    lvlm=Qwen3LVLM,
    towers=(QwenTower,),
    image_processors=("Qwen2VLImageProcessor",),
    plain_layers=("Qwen3VLTextDecoderLayer", "Qwen3VLMoeTextDecoderLayer"),
    unquantised=UNQUANTISED,
)
