"""A language model over the last state of one vision tower, as Gemma 3, PaliGemma, Idefics3 and InternVL have it."""

from __future__ import annotations

import numpy as np
from PIL import Image
from torch import Tensor, nn

from lvlm_radapt.models.base import LVLM, FeaturePoint, PixelBatch
from lvlm_radapt.models.geometry import clip_canvas, eight_bit
from lvlm_radapt.models.language import text_positions
from lvlm_radapt.utils.errors import UserError


class SiglipLVLM(LVLM):
    """The tower's last state goes through `project` to the language model; each image lies on one canvas."""

    @property
    def tower(self) -> nn.Module:
        return self.hf.model.vision_tower

    def canvas(self, image: Image.Image) -> tuple[int, int]:
        return clip_canvas(self.image_processor, image)

    def _canvas_bytes(self, image: Image.Image) -> np.ndarray:
        out = self.image_processor(
            images=[image], do_rescale=False, do_normalize=False, return_tensors="np", **self.processing
        )
        return eight_bit(out["pixel_values"][0])

    def tower_input(self, batch: PixelBatch) -> Tensor:
        """[B, 3, H, W], normalised; float32 even in half precision (the tower rounds after the filter)."""
        return self.normalise(batch.x)

    def features(self, batch: PixelBatch, at: FeaturePoint = "tower") -> Tensor:
        """`tower`: the tower's last state, one row a patch; `projector`: what the language model gets."""
        if at not in ("tower", "projector"):
            raise UserError(f"features at {at!r} are unknown, choose tower or projector")
        states = self.patch_states(batch)
        states = self.project(states, batch) if at == "projector" else states
        return states.reshape(len(batch), -1, states.shape[-1])

    def patch_states(self, batch: PixelBatch) -> Tensor:
        """[views, patches, D] of the tower's last state, without CLS."""
        return self.run_tower(batch).last_hidden_state

    def project(self, states: Tensor, batch: PixelBatch) -> Tensor:
        """[views, tokens, D] for the language model, of the batch's `patch_states`."""
        return self.hf.model.multi_modal_projector(states)

    def image_embeds(self, batch: PixelBatch) -> Tensor:
        return self.features(batch, at="projector")

    def _positions(self, ids: Tensor, mask: Tensor, batch: PixelBatch) -> Tensor:
        return text_positions(mask)
