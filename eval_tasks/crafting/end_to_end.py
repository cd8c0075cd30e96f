"""APGD through the whole model: the likelihood of a reference text falls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from attacks.losses import LossFn
from attacks.success import check_on, geometric_schedule
from eval_tasks.crafting.apgd_attack import APGDAttack
from eval_tasks.crafting.batches import PromptBatch, SampleBatch, ScoredBatch
from eval_tasks.crafting.crafted import Crafted
from eval_tasks.crafting.source_model import SourceModel
from lvlm_radapt.models.base import PixelBatch


@dataclass(frozen=True, kw_only=True)
class EndToEnd(APGDAttack):
    """early_exit: under the adaptive threat a sample stops once its answer scores 0."""

    early_exit: bool = False
    kind: ClassVar[str] = "nll"
    needs: ClassVar[type[SampleBatch]] = PromptBatch
    meant_for: ClassVar[str] = "models that answer in texts"
    reads_prompt: ClassVar[bool] = True

    @property
    def ends_at_zero(self) -> bool:
        return self.early_exit

    @property
    def references(self) -> int:
        return 1

    def loss(self, view: SourceModel, batch: PixelBatch, task: SampleBatch) -> LossFn:
        assert isinstance(task, PromptBatch)
        return view.nll(task.prompts, task.first_references())

    def rival_losses(self, view: SourceModel, task: ScoredBatch) -> dict[str, LossFn]:
        return task.rival_losses(view)

    def craft(self, view: SourceModel, batch: PixelBatch, task: SampleBatch, seeds: Sequence[int]) -> Crafted:
        assert isinstance(task, PromptBatch)
        success = None
        if self.stops_early:
            beaten = self.score_is_zero(view, batch, task)
            success = check_on(geometric_schedule, beaten, count=len(batch), steps=self.steps)
        return self.climb(self.loss(view, batch, task), batch, seeds, task.batch_size, success)
