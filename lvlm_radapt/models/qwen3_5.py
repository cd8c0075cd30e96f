"""Qwen3.5 and 3.6: Qwen3-VL's tower without its inner features, under language layers of which three in four are
recurrent (Gated DeltaNet)."""

from __future__ import annotations

from typing import ClassVar

from lvlm_radapt.models.conversations import CONVERSATIONS, Conversation
from lvlm_radapt.models.family import Family
from lvlm_radapt.models.qwen import UNQUANTISED, QwenLVLM
from lvlm_radapt.towers.qwen import QwenTower


class Qwen35LVLM(QwenLVLM):
    """`Qwen3_5ForConditionalGeneration` and its mixture of experts behind the uniform interface.

    A recurrent layer reads its tokens in order. Padding on the right comes after all that is read. Padding on the left
    is zeroed by the attention mask before it reaches the state.
    """

    default_conversation: ClassVar[Conversation] = CONVERSATIONS["qwen3_5"]


FAMILY = Family(
    checkpoints={
        "qwen3_5": ("Qwen3_5ForConditionalGeneration",),
        "qwen3_5_moe": ("Qwen3_5MoeForConditionalGeneration",),
    },
    lvlm=Qwen35LVLM,
    towers=(QwenTower,),
    image_processors=("Qwen2VLImageProcessor",),
    plain_layers=("Qwen3_5DecoderLayer", "Qwen3_5MoeDecoderLayer"),
    unquantised=UNQUANTISED,
)
