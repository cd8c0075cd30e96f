"""LLaVA-1.5: a CLIP-style tower read at one layer (or several), a two-layer projector, a language model."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from lvlm_radapt.models.base import LVLM, FeaturePoint, PixelBatch
from lvlm_radapt.models.checks import lost_layer
from lvlm_radapt.models.conversations import CONVERSATIONS, Conversation
from lvlm_radapt.models.family import Family
from lvlm_radapt.models.geometry import clip_canvas, clip_canvas_bytes, pad_to_square
from lvlm_radapt.models.language import text_positions
from lvlm_radapt.models.mistral3 import PixtralLVLM
from lvlm_radapt.models.speedups import hidden_states
from lvlm_radapt.towers import find_tower
from lvlm_radapt.towers.clip import CLIPTower
from lvlm_radapt.towers.pixtral import PixtralTower
from lvlm_radapt.towers.siglip import SiglipTower
from lvlm_radapt.utils.errors import UserError


class LlavaLVLM(LVLM):
    """`LlavaForConditionalGeneration` behind the uniform interface."""

    default_conversation: ClassVar[Conversation] = CONVERSATIONS["vicuna_v1"]
    unpadded: ClassVar[str | None] = None

    def __init__(self, hf: Any, tokenizer: Any, image_processor: Any, **settings: Any) -> None:
        super().__init__(hf, tokenizer, image_processor, **settings)
        hidden_states.prepare(self.tower)

    @classmethod
    def check_config(cls, config: Any, name: str) -> None:
        """UserError where config.json has a hidden layer of the tower read that is not there."""
        depth = int(config.vision_config.num_hidden_layers)
        layer = lost_layer(config, depth)
        if layer is not None:
            raise UserError(f"{name}: config.json has layer {layer} of the vision tower read, which has {depth} layers")

    @property
    def tower(self) -> nn.Module:
        return self.hf.model.vision_tower

    def canvas(self, image: Image.Image) -> tuple[int, int]:
        return clip_canvas(self.image_processor, image, square=self.geometry == "pad")

    def _canvas_bytes(self, image: Image.Image) -> np.ndarray:
        if self.geometry == "pad":
            image = pad_to_square(image, self.image_mean)
        return clip_canvas_bytes(self.image_processor, image)

    def tower_input(self, batch: PixelBatch) -> Tensor:
        """[B, 3, H, W], normalised; float32 even in half precision (the tower rounds after the filter)."""
        return self.normalise(batch.x)

    def features(self, batch: PixelBatch, at: FeaturePoint = "tower") -> Tensor:
        """`tower`: the hidden layer(s) the language model reads, joined; `projector`: after the projector."""
        if at not in ("tower", "projector"):
            raise UserError(f"features at {at!r} are unknown, choose tower or projector")
        states = self._tower_states(batch)
        if at == "projector":
            states = self.hf.model.multi_modal_projector(states)
        patches = states[:, states.shape[1] - self._patches(batch) :]
        return patches.reshape(len(batch), -1, patches.shape[-1])

    def _tower_states(self, batch: PixelBatch) -> Tensor:
        """[views, prefix + patches, D] of the configured layer(s), CLS first where the tower has one."""
        views = self.pixel_values(batch).flatten(0, -4)
        layers = self.hf.config.vision_feature_layer
        return torch.cat(hidden_states.read(self.tower, views, [layers] if isinstance(layers, int) else layers), dim=-1)

    def _patches(self, batch: PixelBatch) -> int:
        """How many patches the tower makes of one view."""
        patch = self.hf.config.vision_config.patch_size
        return (batch.x.shape[-2] // patch) * (batch.x.shape[-1] // patch)

    @property
    def _reads_cls(self) -> bool:
        has_cls = find_tower(self.tower).prefix_tokens > 0
        return has_cls and self.hf.config.vision_feature_select_strategy == "full"

    def image_tokens(self, batch: PixelBatch) -> list[int]:
        return [self._patches(batch) + int(self._reads_cls)] * len(batch)

    def image_embeds(self, batch: PixelBatch) -> Tensor:
        states = self._tower_states(batch)
        read = self._patches(batch) + int(self._reads_cls)
        return self.hf.model.multi_modal_projector(states[:, states.shape[1] - read :])

    def _positions(self, ids: Tensor, mask: Tensor, batch: PixelBatch) -> Tensor:
        return text_positions(mask)


PLAIN_LAYERS = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer")
"""Of the language models that LLaVA's checkpoints are built on."""
UNQUANTISED = ("model.vision_tower", "model.multi_modal_projector", "lm_head")

FAMILY = Family(
    checkpoints={"llava": ("LlavaForConditionalGeneration",)},
    lvlm=LlavaLVLM,
    lvlm_over={"pixtral": PixtralLVLM},
    towers=(CLIPTower, SiglipTower, PixtralTower),
    image_processors=("CLIPImageProcessor", "LlavaImageProcessor", "SiglipImageProcessor", "PixtralImageProcessor"),
    plain_layers=PLAIN_LAYERS,
    unquantised=UNQUANTISED,
)
