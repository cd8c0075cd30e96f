"""GLM-4.1V, 4.5V and 4.6V: Qwen's road to the language model, with limits on a canvas that count each pixel once a
frame."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from transformers.models.glm4v.image_processing_pil_glm4v import smart_resize

from lvlm_radapt.models.base import PixelBatch
from lvlm_radapt.models.conversations import CONVERSATIONS, Conversation
from lvlm_radapt.models.family import Family
from lvlm_radapt.models.qwen import UNQUANTISED, QwenLVLM
from lvlm_radapt.models.speedups import truncated_forward
from lvlm_radapt.towers import find_tower
from lvlm_radapt.towers.glm import GlmTower
from lvlm_radapt.towers.parts import tower_blocks

_LAST = "last block"


class GlmLVLM(QwenLVLM):
    """`Glm4vForConditionalGeneration`, `Glm46VForConditionalGeneration` and their mixture of experts.

    The language layers norm what attention and MLP give once more, so the last one is run whole, but for the mixture.
    """

    default_conversation: ClassVar[Conversation] = CONVERSATIONS["glm"]
    counts_frames: ClassVar[bool] = True

    def __init__(self, hf: Any, tokenizer: Any, image_processor: Any, **settings: Any) -> None:
        super().__init__(hf, tokenizer, image_processor, **settings)
        truncated_forward.watch(tower_blocks(find_tower(self.tower))[-1], _LAST)

    def _reserved_ids(self) -> list[int]:
        config = self.hf.config
        ends = (f"{kind}_{place}_token_id" for kind in ("image", "video") for place in ("start", "end"))
        return [config.video_token_id, *(getattr(config, name) for name in ends)]

    def _end_id(self) -> int:
        return int(self.tokenizer.convert_tokens_to_ids("<|user|>"))  # a turn ends where the next one begins

    def _target_prefix(self, opening: str) -> str:
        return "" if opening.endswith("\n") else "\n"

    def _resized(self, height: int, width: int, **limits: int) -> tuple[int, int]:
        frames = self._temporal
        return smart_resize(num_frames=frames, temporal_factor=frames, height=height, width=width, **limits)

    def _patch_states(self, batch: PixelBatch) -> Tensor:
        # the tower's own last states are merged already
        return truncated_forward.run(lambda: self.run_tower(batch), last=_LAST)[_LAST]


FAMILY = Family(
    checkpoints={
        "glm4v": ("Glm4vForConditionalGeneration",),
        "glm46v": ("Glm46VForConditionalGeneration",),
        "glm4v_moe": ("Glm4vMoeForConditionalGeneration",),
    },
    lvlm=GlmLVLM,
    towers=(GlmTower,),
    image_processors=("Glm4vImageProcessor", "Glm46VImageProcessor"),
    plain_layers=("Glm4vMoeTextDecoderLayer",),
    unquantised=UNQUANTISED,
)
