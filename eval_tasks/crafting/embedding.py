"""The image tokens driven away from the clean ones: needs the vision encoder alone (VEAttack, arXiv 2505.17440)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from attacks import embedding_loss
from attacks.losses import LossFn
from eval_tasks.crafting.apgd_attack import APGDAttack
from eval_tasks.crafting.batches import SampleBatch
from eval_tasks.crafting.crafted import Crafted
from eval_tasks.crafting.source_model import SourceModel
from eval_tasks.data import chunks
from lvlm_radapt.models.base import LVLM, PixelBatch, PixelModel
from lvlm_radapt.utils.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Embedding(APGDAttack):
    """at: where the image tokens are read. distance: from the clean ones, 1 - cosine or squared Euclidean."""

    at: Literal["tower", "projector"] = "tower"
    distance: Literal["cosine", "l2"] = "cosine"
    kind: ClassVar[str] = "embedding"

    def check(self, model: PixelModel, surrogate: PixelModel | None) -> None:
        if self.at == "projector" and not isinstance(model, LVLM):
            raise UserError(f"--attack {self.name} reads a projector, which an image encoder has none of")
        super().check(model, surrogate)

    def loss(self, view: SourceModel, batch: PixelBatch, task: SampleBatch) -> LossFn:
        source, clean_view = view.source, view.view
        if source.is_random:
            return view.over_draws(lambda draw: self._drawn(view, draw))
        rows = chunks(range(len(clean_view)), task.batch_size)
        with torch.no_grad():
            clean = torch.cat([source.features(clean_view[some], at=self.at) for some in rows])
        return embedding_loss(view.features(self.at), clean, distance=self.distance)

    def _drawn(self, view: SourceModel, draw: int) -> LossFn:
        """Behind a random defence: the clean image is seen with the draw that the attacked one is seen with."""

        def loss(x: Tensor, index: list[int]) -> Tensor:
            seen = view.seen(x, index, draw)
            with torch.no_grad():
                clean = view.source.features(view.view[index].with_seeds(seen.seeds), at=self.at)
            tokens = view.source.features(seen, at=self.at)
            return embedding_loss(lambda x, index: tokens, clean, distance=self.distance)(x, list(range(len(index))))

        return loss

    def craft(self, view: SourceModel, batch: PixelBatch, task: SampleBatch, seeds: Sequence[int]) -> Crafted:
        return self.climb(self.loss(view, batch, task), batch, seeds, task.batch_size)
