"""For retrieval: CLIP's contrastive loss (arXiv 2103.00020, section 2.3) of an image among all captions, raised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from attacks import contrastive_loss
from attacks.losses import LossFn
from eval_tasks.crafting.apgd_attack import APGDAttack
from eval_tasks.crafting.batches import CaptionBatch, SampleBatch
from eval_tasks.crafting.crafted import Crafted
from eval_tasks.crafting.source_model import SourceModel
from lvlm_radapt.models.base import PixelBatch


@dataclass(frozen=True, kw_only=True)
class Contrastive(APGDAttack):
    """It always runs to its last step: recall@5, recall@10 and the other direction are to fall too."""

    kind: ClassVar[str] = "contrastive"
    needs: ClassVar[type[SampleBatch]] = CaptionBatch
    meant_for: ClassVar[str] = "image encoders and retrieval tasks"

    def loss(self, view: SourceModel, batch: PixelBatch, task: SampleBatch) -> LossFn:
        assert isinstance(task, CaptionBatch)
        logits, own, count = task.space.logits, task.own, task.count

        def loss_of(draw: int) -> LossFn:
            return contrastive_loss(lambda x, index: logits(view.seen(x, index, draw)), own, count)

        return view.over_draws(loss_of)

    def craft(self, view: SourceModel, batch: PixelBatch, task: SampleBatch, seeds: Sequence[int]) -> Crafted:
        return self.climb(self.loss(view, batch, task), batch, seeds, task.batch_size)
