"""APGD through the whole model towards a text of the user's, as in FARE's targeted evaluation (arXiv 2402.12336)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attacks.apgd import SuccessFn
from attacks.eight_bit import from_8bit
from attacks.losses import LossFn
from attacks.success import check_on
from eval_tasks.crafting.apgd_attack import APGDAttack
from eval_tasks.crafting.batches import PromptBatch, SampleBatch, ScoredBatch
from eval_tasks.crafting.crafted import Crafted
from eval_tasks.crafting.source_model import SourceModel
from lvlm_radapt.models.base import PixelBatch
from lvlm_radapt.utils.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Targeted(APGDAttack):
    """target: the text that is made likely. A sample stops once its answer contains it."""

    target: str = ""
    kind: ClassVar[str] = "targeted"
    needs: ClassVar[type[SampleBatch]] = PromptBatch
    meant_for: ClassVar[str] = "models that answer in texts"
    reads_prompt: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.target.strip():
            raise UserError("--attack targeted needs a text the model shall say: give it as --target TEXT")
        object.__setattr__(self, "target", " ".join(self.target.split()))

    @property
    def stops_early(self) -> bool:
        return True

    def loss(self, view: SourceModel, batch: PixelBatch, task: SampleBatch) -> LossFn:
        assert isinstance(task, PromptBatch)
        return view.nll(task.prompts, [self.target] * len(task.samples), sign=-1)

    def graded(self, task: ScoredBatch, answers: Sequence[str], index: Sequence[int]) -> list[float]:
        return [0.0 if contains_target(answer, self.target) else 100.0 for answer in answers]

    def craft(self, view: SourceModel, batch: PixelBatch, task: SampleBatch, seeds: Sequence[int]) -> Crafted:
        assert isinstance(task, PromptBatch)
        success = self._target_reached(view, batch, task)
        return self.climb(self.loss(view, batch, task), batch, seeds, task.batch_size, success)

    def _target_reached(self, view: SourceModel, batch: PixelBatch, task: ScoredBatch) -> SuccessFn:
        """Whether the answer to the 8-bit image contains the target; checked now and then, as an answer is costly."""
        every = max(10, self.steps // 50)

        def ask(x_adv: Tensor, rows: list[int]) -> Tensor:
            answers = task.answers(view, from_8bit(self.round_to_8bit(x_adv, batch.x[rows])), rows)
            return torch.tensor([contains_target(answer, self.target) for answer in answers])

        return check_on(lambda done: done > 0 and done % every == 0, ask, count=len(batch), steps=self.steps)


def contains_target(answer: str, target: str) -> bool:
    """Whether the target text occurs in the answer, in upper or lower case."""
    return target.casefold() in answer.casefold()
