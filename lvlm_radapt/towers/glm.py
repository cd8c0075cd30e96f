"""GLM-4.1V, 4.5V and 4.6V vision encoders: Qwen's patches and order, and learned positions on each image's own grid."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from lvlm_radapt.towers.base import PartLayout
from lvlm_radapt.towers.qwen import QwenTower


class GlmTower(QwenTower):
    """What all of GLM-4.xV share."""

    family = "glm"
    encoders = ("Glm4vVisionModel", "Glm4vMoeVisionModel")
    layout = PartLayout(("patch_embed.", "embeddings.", "post_conv_layernorm."), "blocks.", "norm1")

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.absolute_positions = True

    def _usual_grid(self) -> tuple[int, int]:
        module: Any = self.module
        side = math.isqrt(module.embeddings.num_positions)
        return side, side
