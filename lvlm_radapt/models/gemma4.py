"""Gemma 4: images of any shape within a budget of tokens, blocks of patches averaged into one each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers.models.gemma4.image_processing_pil_gemma4 import get_aspect_ratio_preserving_size

from lvlm_radapt.models.base import FeaturePoint, PixelBatch
from lvlm_radapt.models.conversations import CONVERSATIONS, Conversation
from lvlm_radapt.models.family import Family
from lvlm_radapt.models.geometry import eight_bit
from lvlm_radapt.models.siglip_lvlm import SiglipLVLM
from lvlm_radapt.models.speedups import truncated_forward
from lvlm_radapt.towers import find_tower
from lvlm_radapt.towers.gemma4 import Gemma4Tower, image_rows, places_on, rows_image
from lvlm_radapt.towers.parts import tower_blocks
from lvlm_radapt.utils.errors import UserError

_LAST = "last block"


class Gemma4LVLM(SiglipLVLM):
    """`Gemma4ForConditionalGeneration` behind the uniform interface; its ears are loaded and not used.

    The small ones add an embedding of each token to every language layer. In the large ones the tokens of an image
    attend to each other in both directions, in layers with windows.
    """

    default_conversation: ClassVar[Conversation] = CONVERSATIONS["gemma4"]

    def __init__(self, hf: Any, tokenizer: Any, image_processor: Any, **settings: Any) -> None:
        super().__init__(hf, tokenizer, image_processor, **settings)
        vision = hf.config.vision_config
        self._patch, self._pool = int(vision.patch_size), int(vision.pooling_kernel_size)
        self._most = image_processor.max_soft_tokens * self._pool**2
        truncated_forward.watch(tower_blocks(find_tower(self.tower))[-1], _LAST)

    @classmethod
    def check_config(cls, config: Any, name: str) -> None:
        """UserError for a checkpoint without eyes."""
        if config.vision_config is None:
            raise UserError(f"{name}: its config.json has no vision_config: it reads no images")

    def processor_values(self) -> dict[str, Any]:
        return {"image_seq_length": self.image_processor.max_soft_tokens}

    def image_text(self, meta: Mapping[str, Any]) -> str:
        opening, closing = map(self.tokenizer.convert_ids_to_tokens, self._around())
        return f"{opening}{super().image_text(meta)}{closing}"

    def _around(self) -> tuple[int, int]:
        return self.hf.config.boi_token_id, self.hf.config.eoi_token_id

    def _reserved_ids(self) -> list[int]:
        config = self.hf.config
        ids = (*self._around(), config.video_token_id, config.audio_token_id)
        return [one for one in ids if one is not None]

    def _end_id(self) -> int:
        return int(self.tokenizer.convert_tokens_to_ids("<turn|>"))

    def _target_prefix(self, opening: str) -> str:
        return ""

    def canvas(self, image: Image.Image) -> tuple[int, int]:
        if not self.image_processor.do_resize:
            return image.height, image.width
        try:
            return get_aspect_ratio_preserving_size(image.height, image.width, self._patch, self._most, self._pool)
        except ValueError as error:
            raise UserError(f"an image of {image.width}x{image.height} px cannot be used: {error}") from error

    def _canvas_bytes(self, image: Image.Image) -> np.ndarray:
        out = self.image_processor(images=[image], do_rescale=False, do_normalize=False, return_tensors="pt")
        high, wide = (side // self._patch for side in self.canvas(image))
        rows = out["pixel_values"][:, : high * wide].float()
        return eight_bit(rows_image(rows, (high, wide), self._patch)[0].numpy())

    def _grid(self, batch: PixelBatch) -> tuple[int, int]:
        return batch.x.shape[-2] // self._patch, batch.x.shape[-1] // self._patch

    def tower_input(self, batch: PixelBatch) -> Tensor:
        """[B, P, p * p * 3] rows of patches, padded as the stock processor does."""
        rows = image_rows(self.normalise(batch.x), self._patch)
        return functional.pad(rows, (0, 0, 0, self._most - rows.shape[1]))

    def run_tower(self, batch: PixelBatch) -> Any:
        places = places_on(self._grid(batch), self._most).to(self.device)
        return self.tower(self.pixel_values(batch), pixel_position_ids=places.expand(len(batch), -1, -1))

    def patch_states(self, batch: PixelBatch) -> Tensor:
        # the tower's own last states are averaged already
        states = truncated_forward.run(lambda: self.run_tower(batch), last=_LAST)[_LAST]
        high, wide = self._grid(batch)
        return states[:, : high * wide]

    def features(self, batch: PixelBatch, at: FeaturePoint = "tower") -> Tensor:
        return self.image_embeds(batch) if at == "projector" else super().features(batch, at)

    def image_embeds(self, batch: PixelBatch) -> Tensor:
        return self.hf.model.embed_vision(self.run_tower(batch).last_hidden_state).unflatten(0, (len(batch), -1))

    def image_tokens(self, batch: PixelBatch) -> list[int]:
        high, wide = self._grid(batch)
        return [high * wide // self._pool**2] * len(batch)

    def token_inputs(self, ids: Tensor) -> dict[str, Any]:
        config = self.language_model.config
        if not config.hidden_size_per_layer_input:
            return {}
        ids = ids.masked_fill(ids == self.text.image_id, config.pad_token_id)
        return {"per_layer_inputs": self.language_model.get_per_layer_inputs(ids, None)}

    def _attention(
        self, ids: Tensor, mask: Tensor, prompt: Tensor, embeds: Tensor, positions: Tensor
    ) -> dict[str, Any]:
        if self.language_model.config.use_bidirectional_attention is None:
            return {}
        types = (ids == self.text.image_id).int()
        make = self.hf.create_masks_for_generate
        return {"attention_mask": make(self.hf.config, embeds, mask, None, positions, mm_token_type_ids=types)}


FAMILY = Family(
    checkpoints={"gemma4": ("Gemma4ForConditionalGeneration",)},
    lvlm=Gemma4LVLM,
    towers=(Gemma4Tower,),
    image_processors=("Gemma4ImageProcessor",),
    unquantised=("model.vision_tower", "model.embed_vision", "model.audio_tower", "model.embed_audio", "lm_head"),
)
