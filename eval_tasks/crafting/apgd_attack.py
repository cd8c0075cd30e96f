"""What the attacks share that climb a loss by APGD (arXiv 2003.01690)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from attacks import apgd, cpu_workers
from attacks.apgd import SuccessFn
from attacks.eight_bit import from_8bit
from attacks.losses import LossFn
from attacks.threads import workers_of
from eval_tasks.crafting.attack import Attack
from eval_tasks.crafting.batches import ScoredBatch
from eval_tasks.crafting.crafted import Crafted
from eval_tasks.crafting.source_model import SourceModel
from lvlm_radapt.models.base import PixelBatch
from lvlm_radapt.utils.bounds import MOST

Count = Annotated[int, Field(ge=1, le=MOST)]


@dataclass(frozen=True, kw_only=True)
class APGDAttack(Attack):
    """steps: gradient steps a sample. restarts: runs from other starts; the best one counts. random_start: begin at a
    random point of the ball. step_scale: the first step in units of eps."""

    steps: Count = 100
    restarts: Count = 1
    random_start: bool = True
    step_scale: Annotated[float, Field(gt=0)] = 2.0

    def climb(
        self, loss: LossFn, batch: PixelBatch, seeds: Sequence[int], batch_size: int, success: SuccessFn | None = None
    ) -> Crafted:
        """What APGD on that loss makes of the batch."""
        found = apgd(
            loss, batch.x, **self.apgd_arguments(), seed=seeds, success=success, batch_size=batch_size,
            workers=workers_of(batch.x),
        )  # fmt: skip
        pixels = self.round_to_8bit(found.x_adv, batch.x)
        return Crafted.plain(pixels, found.loss.tolist(), found.steps.tolist(), found.zero_grad.tolist(), found.failed)

    def apgd_arguments(self) -> dict[str, Any]:
        """The keywords of `apgd` and `ensemble` that say how strong the attack is."""
        names = ("eps", "norm", "steps", "random_start", "step_scale", "restarts")
        return {name: getattr(self, name) for name in names}

    def score_is_zero(self, view: SourceModel, batch: PixelBatch, task: ScoredBatch) -> SuccessFn:
        """Whether the answer to the 8-bit image scores 0: no attack can do better."""

        def ask(x_adv: Tensor, rows: list[int]) -> Tensor:
            pixels = self.round_to_8bit(x_adv, batch.x[rows])
            return torch.tensor([score <= 0 for score in task.grade(task.answers(view, from_8bit(pixels), rows), rows)])

        return ask


def workers(batch: PixelBatch) -> Callable[[int], int]:
    """Threads for so many samples: several on a CPU, which one operation of a small model does not fill."""
    return cpu_workers if batch.x.device.type == "cpu" else lambda count: 1
